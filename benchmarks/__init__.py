"""Speed and memory against peers: ratios measured side by side in one run, never asserted."""
