import pytest
import torch
from torch import nn

from detloom.assembly import assemble
from detloom.errors import PluginError
from detloom.interfaces import Fold
from detloom.reparam import fold
from detloom.structures import Role
from detloom_plugins.drop_auxiliary import DropAuxiliaryPass

AUXILIARY = {"neck.auxiliary": [16, 16, 16], "reparam.passes": ["drop-auxiliary", "fold-implicit", "fuse-bn"]}


def test_deployed_form_has_no_auxiliary_parts_and_equal_outputs() -> None:
    detector = assemble("demo", AUXILIARY, num_classes=2)

    folded, report = fold(detector, [DropAuxiliaryPass()], example=torch.rand(1, 3, 64, 64))

    assert not [name for name in folded.state_dict() if "auxiliary" in name]
    assert {spec.role for spec in folded.level_specs} == {Role.LEAD}
    assert max(each.absolute for each in report.outputs) == 0
    assert len(detector.head.get_submodule("auxiliary").state_dict())


def test_folded_model_still_runs_in_training_mode() -> None:
    folded, _ = fold(assemble("demo", AUXILIARY, num_classes=2), [DropAuxiliaryPass()])

    maps = folded.train()(torch.rand(2, 3, 64, 64))

    assert (len(maps.lead), len(maps.auxiliary)) == (3, 0)


def test_plan_names_neck_and_head_and_is_empty_afterwards() -> None:
    detector = assemble("demo", AUXILIARY, num_classes=2)

    plan = DropAuxiliaryPass().plan(detector)

    assert [(each.path, each.reason) for each in plan] == [
        (part, "3 auxiliary levels serve training alone") for part in ("neck", "head")
    ]
    assert DropAuxiliaryPass().plan(fold(detector, [DropAuxiliaryPass()])[0]) == []


def test_auxiliary_levels_on_some_strides_are_all_dropped() -> None:
    detector = assemble("demo", AUXILIARY | {"neck.auxiliary": [0, 16, 0]}, num_classes=2)

    folded, report = fold(detector, [DropAuxiliaryPass()], example=torch.rand(1, 3, 64, 64))

    assert not [name for name in folded.state_dict() if "auxiliary" in name]
    assert {spec.role for spec in folded.level_specs} == {Role.LEAD}
    assert max(each.absolute for each in report.outputs) == 0


def test_module_without_auxiliary_parts_is_refused() -> None:
    with pytest.raises(PluginError, match="drop-auxiliary: the model has no auxiliary parts"):
        DropAuxiliaryPass().fold(nn.Identity(), Fold("", applies=True, reason=""))
