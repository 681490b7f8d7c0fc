"""Lists of names as a user writes them."""

from collections.abc import Callable

import pytest

from sglang_fl.settings.names import NameList, parse_aten_names, parse_layer_names, parse_vendor_names


@pytest.mark.parametrize(
    "value", ["RMSNorm, rms_norm ,!silu_and_mul", ["RMSNorm", "rms_norm", "!silu_and_mul"]]
)
def test_text_and_list_say_the_same(value: str | list[str]):
    names = parse_layer_names(value)
    assert names == NameList(("RMSNorm", "rms_norm"), ("silu_and_mul",))
    assert str(names) == "RMSNorm,rms_norm,!silu_and_mul"


@pytest.mark.parametrize(
    ("names", "is_given"), [(NameList(), False), (NameList(("a",)), True), (NameList((), ("a",)), True)]
)
def test_list_of_lifts_alone_has_no_entries_but_was_given(names: NameList, is_given: bool):
    assert bool(names) is is_given


@pytest.mark.parametrize(
    "name", ["mm", "aten::mm", "add.Tensor", "aten::add.Tensor_out", "_softmax", "to_copy"]
)
def test_both_spellings_of_aten_ops_are_accepted(name: str):
    assert parse_aten_names(f"{name},!{name}") == NameList((name,), (name,))


MALFORMED = {
    "empty": ("", "there is an empty name in it"),
    "trailing-comma": ("a,", "there is an empty name in it"),
    "blank": ("a, ,b", "there is an empty name in it"),
    "two-words": ("a b", "'a b' cannot be a name"),
    "semicolon": ("a;b", "'a;b' cannot be a name"),
    "path": ("../a", "'../a' cannot be a name"),
    "number": ("1", "'1' cannot be a name"),
    "other-letters": ("ä", "'ä' cannot be a name"),
    "line-end": ("a\nb", r"'a\\nb' cannot be a name"),
    "bare-lift": ("!", "'!' cannot be a name"),
    "lift-twice": ("!!a", "'!!a' cannot be a name"),
    "twice": ("a,b, a", "'a' appears twice"),
}


@pytest.mark.parametrize("parse", [parse_layer_names, parse_aten_names, parse_vendor_names])
@pytest.mark.parametrize(("text", "reason"), MALFORMED.values(), ids=MALFORMED)
def test_malformed_name_is_refused(parse: Callable[[str], object], text: str, reason: str):
    with pytest.raises(ValueError, match=reason):
        parse(text)


def test_comma_inside_an_item_of_a_list_does_not_split_it():
    with pytest.raises(ValueError, match="'a,b' cannot be a name"):
        parse_layer_names(["a,b"])


def test_vendor_has_no_quarantine_to_lift():
    assert parse_vendor_names("nvidia, toy") == ("nvidia", "toy")
    with pytest.raises(ValueError, match="'!toy' cannot be a vendor"):
        parse_vendor_names("!toy")
