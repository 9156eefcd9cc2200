from __future__ import annotations

import json

import pytest
import torch

from nestling.storage.packing import pack, unpack, unshared


def test_round_trip_through_json():
    value = {"a": [torch.arange(3), {"b": 0.1}], "c": None, "d": True, "e": torch.ones(()), "f": {}}
    tensors = {}
    plain = json.loads(json.dumps(pack(value, tensors)))
    assert sorted(tensors) == ["a/0", "e"]
    back = unpack(plain, tensors)
    assert torch.equal(back["a"][0], value["a"][0])
    assert back["a"][1] == {"b": 0.1}
    assert (back["c"], back["d"], back["f"]) == (None, True, {})
    assert back["e"].shape == ()


def test_what_is_not_plain_is_refused_by_its_path():
    with pytest.raises(ValueError, match="a/0: a complex cannot be saved without pickle"):
        pack({"a": [1j]}, {})
    with pytest.raises(ValueError, match="a: expected names as keys, got"):
        pack({"a": {0: 1}}, {})
    with pytest.raises(ValueError, match="expected 'x', which is not there"):
        unpack({"$tensor": "x"}, {})


def test_views_become_tensors_of_their_own():
    base = torch.arange(12.0)
    tensors = {
        "whole": base,
        "view": base.view(3, 4),
        "part": base[2:5],
        "expanded": torch.ones(1, 3).expand(2, 3),
        "turned": base.view(3, 4).T,
        "empty": torch.zeros(2, 0),
        "empty too": torch.zeros(0, 3),
    }
    own = unshared(tensors)
    for name, tensor in tensors.items():
        assert torch.equal(own[name], tensor)
        assert own[name].is_contiguous()
    places = [t.untyped_storage().data_ptr() for t in own.values() if t.numel()]
    assert len(set(places)) == len(places)
    assert own["part"].untyped_storage().nbytes() == 12
