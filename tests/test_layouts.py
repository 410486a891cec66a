"""Which folders hold pairs, in which order, and what is said when none do."""

import os
import sys
from pathlib import Path

import pytest

from pictures import folders
from pictures.layouts import Pair, find_pairs


def place(folder: Path, *names: str) -> None:
    """Make empty files: finding pairs opens none of them."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).touch()


def names(pairs: tuple[Pair, ...]) -> list[str]:
    return [pair.a.name for pair in pairs]


@pytest.mark.parametrize("nested", ["", "maps", "maps/maps"])
@pytest.mark.parametrize("val", ["val", "validation", "test"])
def test_train_and_val_are_found_down_to_two_levels(tmp_path: Path, nested: str, val: str) -> None:
    place(tmp_path / nested / "train", "1.jpg", "2.jpg")
    place(tmp_path / nested / val, "3.jpg")
    split = find_pairs(tmp_path)
    assert (names(split.train), names(split.val)) == (["1.jpg", "2.jpg"], ["3.jpg"])
    assert (split.root, split.layout) == (tmp_path / nested, "side by side")


def test_folders_may_be_in_upper_case(tmp_path: Path) -> None:
    place(tmp_path / "Train", "1.jpg")
    place(tmp_path / "VAL", "3.jpg")
    assert names(find_pairs(tmp_path).val) == ["3.jpg"]


def test_three_levels_down_is_too_deep(tmp_path: Path) -> None:
    place(tmp_path / "a/b/c/train", "1.jpg")
    deep = os.path.join("a", "b", "c", "train")
    with pytest.raises(ValueError, match="at most 2 folders down") as caught:
        find_pairs(tmp_path)
    assert f"(1 .jpg in {deep})" in str(caught.value)


def test_val_is_preferred_to_test_and_an_empty_one_is_passed_over(tmp_path: Path) -> None:
    place(tmp_path / "train", "1.png")
    place(tmp_path / "val")
    place(tmp_path / "test", "3.png")
    assert names(find_pairs(tmp_path).val) == ["3.png"]
    place(tmp_path / "val", "2.png")
    assert names(find_pairs(tmp_path).val) == ["2.png"]


def test_several_candidates_are_all_listed(tmp_path: Path) -> None:
    for name in ("facades", "maps"):
        place(tmp_path / name / "train", "1.jpg")
        place(tmp_path / name / "val", "1.jpg")
    with pytest.raises(ValueError, match="Give the folder of one") as caught:
        find_pairs(tmp_path)
    assert str(tmp_path / "facades") in str(caught.value)
    assert str(tmp_path / "maps") in str(caught.value)


def test_a_flat_folder_is_split_the_same_way_each_time(tmp_path: Path) -> None:
    place(tmp_path, *(f"{n}.png" for n in range(40)))
    split = find_pairs(tmp_path, val_fraction=0.25, seed=3)
    assert (len(split.train), len(split.val)) == (30, 10)
    assert set(split.train).isdisjoint(split.val)
    assert find_pairs(tmp_path, val_fraction=0.25, seed=3) == split
    assert find_pairs(tmp_path, val_fraction=0.25, seed=4).val != split.val
    assert "10 of 40 held out" in split.layout


def test_a_split_hardly_changes_when_pictures_are_added(tmp_path: Path) -> None:
    place(tmp_path, *(f"{n}.png" for n in range(100)))
    before = set(names(find_pairs(tmp_path).val))
    place(tmp_path, "extra.png")
    assert len(before & set(names(find_pairs(tmp_path).val))) >= 9


@pytest.mark.parametrize("val_fraction", [0.001, 0.999])
def test_each_side_of_a_split_gets_at_least_one(tmp_path: Path, val_fraction: float) -> None:
    place(tmp_path, "1.png", "2.png", "3.png")
    split = find_pairs(tmp_path, val_fraction=val_fraction)
    assert split.train
    assert split.val


def test_train_without_val_is_split_and_the_layout_says_so(tmp_path: Path) -> None:
    place(tmp_path / "train", "1.png", "2.png", "3.png")
    split = find_pairs(tmp_path)
    assert (len(split.train), len(split.val)) == (2, 1)
    assert "side by side, 1 of 3 held out by val_fraction" in split.layout


# What is left out


def test_all_that_is_left_out_is_counted_and_named(tmp_path: Path) -> None:
    place(tmp_path / "train", "1.png", "2.png", "3.GIF", "4.gif", "notes.txt", ".hidden.png")
    place(tmp_path / "val", "5.png")
    assert find_pairs(tmp_path).left_out == f"left out of {tmp_path}: 2 .gif in train"
    place(tmp_path / "exam", *(f"{n}.png" for n in range(3)), "raw")
    (tmp_path / "train/more").symlink_to(tmp_path / "exam")
    assert find_pairs(tmp_path).left_out == (
        f"left out of {tmp_path}: 3 .png in exam, 2 .gif in train, 1 without suffix in exam, "
        "1 linked folder(s) in train"
    )


@pytest.mark.parametrize(
    ("folders", "left"),
    [
        (("trainA", "trainB", "testA"), "2 .png in testA"),
        (("train/A", "train/B", "valA", "valB"), "2 .png in valA, 2 .png in valB"),
        (("train", "val", "test/1"), "2 .png in test/1"),
    ],
)
def test_a_set_that_is_passed_over_is_left_out(
    tmp_path: Path, folders: tuple[str, ...], left: str
) -> None:
    for folder in folders:
        place(tmp_path / folder, "1.png", "2.png")
    left_out = find_pairs(tmp_path).left_out
    assert left_out.replace(os.sep, "/").endswith(f": {left}")


def test_a_linked_set_is_used_and_nothing_is_left_out(tmp_path: Path) -> None:
    for part in ("train", "val"):
        place(tmp_path / "disk" / part, "1.png")
    (tmp_path / "set").mkdir()
    (tmp_path / "set/train").symlink_to(tmp_path / "disk/train")
    (tmp_path / "set/val").symlink_to(tmp_path / "disk/val")
    split = find_pairs(tmp_path / "set")
    assert (len(split.train), len(split.val), split.left_out) == (1, 1, "")


def test_beside_named_folders_nothing_is_searched(tmp_path: Path) -> None:
    place(tmp_path / "learn", "1.png", "2.png", "3.gif")
    place(tmp_path / "private", "1.png")
    assert find_pairs(tmp_path, train_dir="learn").left_out.endswith(": 1 .gif in learn")


def test_names_that_differ_in_the_suffix_alone_are_listed(tmp_path: Path) -> None:
    place(tmp_path, "1.png", "1.jpg", "2.png")
    with pytest.raises(ValueError, match=r"the same name in .*: 1\.jpg = 1\.png\n"):
        find_pairs(tmp_path)


def test_a_folder_of_pictures_one_level_down_is_found(tmp_path: Path) -> None:
    place(tmp_path / "pictures", "1.png", "2.png")
    assert find_pairs(tmp_path).root == tmp_path / "pictures"


def test_the_folders_can_be_named(tmp_path: Path) -> None:
    place(tmp_path / "data/learn", "1.png")
    place(tmp_path / "elsewhere", "2.png")
    split = find_pairs(tmp_path / "data", train_dir="learn", val_dir=str(tmp_path / "elsewhere"))
    assert (names(split.train), names(split.val)) == (["1.png"], ["2.png"])


def test_a_named_training_folder_alone_is_split(tmp_path: Path) -> None:
    place(tmp_path / "learn", "1.png", "2.png")
    assert len(find_pairs(tmp_path, train_dir="learn").val) == 1


def test_named_folders_that_make_no_sense_are_refused(tmp_path: Path) -> None:
    place(tmp_path / "learn", "1.png", "2.png")
    with pytest.raises(ValueError, match=r"2 of 2 training pairs .*/1\.png, .*/2\.png\."):
        find_pairs(tmp_path, train_dir="learn", val_dir="../" + tmp_path.name + "/learn")
    with pytest.raises(FileNotFoundError, match=r"val_dir .*did you mean .*learn"):
        find_pairs(tmp_path, train_dir="learn", val_dir="lern")


def test_the_order_does_not_depend_on_the_system(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = ["a.jpg", "b.png", "C.PNG", "é.png"]
    place(tmp_path / "train")
    place(tmp_path / "val", "1.png")
    listed = os.listdir
    for order in (expected, expected[::-1]):
        monkeypatch.setattr(
            folders.os,
            "listdir",
            lambda folder, order=order: order if folder.name == "train" else listed(folder),
        )
        assert names(find_pairs(tmp_path).train) == expected


def test_only_pictures_count(tmp_path: Path) -> None:
    place(tmp_path / "train", "1.JPG", "2.Png", "3.webp", "4.tif", "5.TIFF", "6.bmp", "7.jpeg")
    place(tmp_path / "train", "8.jfif", "9.jpe", "x.npy")
    place(tmp_path / "train", ".hidden.png", "._1.JPG", "Thumbs.db", "desktop.ini", "notes.txt")
    place(tmp_path / "train/folder.png")
    place(tmp_path / "val", "1.png")
    place(tmp_path / "__MACOSX/train", "1.jpg")
    place(tmp_path / ".git/train", "1.jpg")
    assert [n[0] for n in names(find_pairs(tmp_path).train)] == list("123456789x")


def test_a_broken_link_is_kept_to_be_reported(tmp_path: Path) -> None:
    place(tmp_path / "train", "1.png")
    place(tmp_path / "val", "1.png")
    (tmp_path / "train/2.png").symlink_to(tmp_path / "gone.png")
    assert names(find_pairs(tmp_path).train) == ["1.png", "2.png"]


def test_a_missing_folder_names_its_near_matches(tmp_path: Path) -> None:
    place(tmp_path / "facades", "1.png")
    with pytest.raises(FileNotFoundError, match=r"facade does not exist .*did you mean .*facades"):
        find_pairs(tmp_path / "facade")
    with pytest.raises(FileNotFoundError, match=r"holds facades"):
        find_pairs(tmp_path / "nothing/like/it")


def test_an_address_is_not_a_folder() -> None:
    with pytest.raises(FileNotFoundError, match="is an address"):
        find_pairs(Path("https://x.org/maps"))


def test_a_file_is_not_a_folder(tmp_path: Path) -> None:
    place(tmp_path, "maps.tar.gz")
    with pytest.raises(NotADirectoryError, match="unpack an archive first"):
        find_pairs(tmp_path / "maps.tar.gz")


def test_a_folder_without_pictures_says_what_it_holds(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="it is empty"):
        find_pairs(tmp_path)
    place(tmp_path, ".1.png")
    with pytest.raises(ValueError, match="hidden files and empty folders alone"):
        find_pairs(tmp_path)
    place(tmp_path, "1.heic", "2.heic")
    with pytest.raises(ValueError, match=r"2 \.heic\)\. Expected \.png"):
        find_pairs(tmp_path)
    place(tmp_path / "train", "1.gif")
    with pytest.raises(ValueError, match=r"no pictures \(2 \.heic, 1 \.gif in train\)"):
        find_pairs(tmp_path)


def test_one_pair_cannot_be_split(tmp_path: Path) -> None:
    place(tmp_path, "1.png")
    with pytest.raises(ValueError, match="training and validation need one each"):
        find_pairs(tmp_path)


def test_an_unreadable_folder_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(folder: Path) -> list[str]:
        raise PermissionError(13, "Permission denied", str(folder))

    monkeypatch.setattr(folders.os, "listdir", refuse)
    with pytest.raises(OSError, match=r"cannot be read \(Permission denied\)"):
        find_pairs(tmp_path)


def test_a_pair_is_named_by_the_stem_of_its_file() -> None:
    assert Pair(Path("maps/train/12.jpg")).name == "12"


# Two folders


def two(pairs: tuple[Pair, ...]) -> list[tuple[str, str]]:
    return [(pair.a.name, pair.b.name) for pair in pairs if pair.b]


TWO_FOLDERS = ["{}A {}B", "A/{} B/{}", "{}/A {}/B"]


@pytest.mark.parametrize("pattern", TWO_FOLDERS)
@pytest.mark.parametrize("val", ["val", "test"])
@pytest.mark.parametrize("nested", ["", "x/y"])
def test_two_folders_pair_up_by_stem(tmp_path: Path, pattern: str, val: str, nested: str) -> None:
    for role, stems in (("train", "12"), (val, "3")):
        for half, suffix in zip(pattern.format(role, role).split(), (".jpg", ".PNG"), strict=True):
            place(tmp_path / nested / half, *(stem + suffix for stem in stems))
    split = find_pairs(tmp_path)
    assert two(split.train) == [("1.jpg", "1.PNG"), ("2.jpg", "2.PNG")]
    assert two(split.val) == [("3.jpg", "3.PNG")]
    assert (split.layout, split.root) == ("two folders", tmp_path / nested)
    assert split.train[0].a.parent != split.train[0].b.parent


@pytest.mark.parametrize("pattern", [*TWO_FOLDERS, "A B"])
def test_two_folders_without_val_are_split(tmp_path: Path, pattern: str) -> None:
    for half in pattern.format("train", "train").split():
        place(tmp_path / half, *(f"{n}.png" for n in range(10)))
    split = find_pairs(tmp_path, val_fraction=0.2)
    assert (len(split.train), len(split.val)) == (8, 2)
    assert split.layout == "two folders, 2 of 10 held out by val_fraction"
    assert all(pair.b and pair.a.name == pair.b.name for pair in split.train + split.val)


def test_two_folders_anywhere_are_split(tmp_path: Path) -> None:
    place(tmp_path / "photos", "1.jpg", "2.jpg", "3.jpg", "4.gif")
    place(tmp_path / "data/labels", "1.png", "2.png", "3.png")
    sides = {"a": str(tmp_path / "photos"), "b": str(tmp_path / "data/labels")}
    split = find_pairs(tmp_path / "nowhere", **sides)
    assert sorted(two(split.train + split.val)) == [(f"{n}.jpg", f"{n}.png") for n in (1, 2, 3)]
    assert len(split.val) == 1
    assert "1 .gif in" in split.left_out
    with pytest.raises(FileNotFoundError, match=r"did you mean .*photos"):
        find_pairs(tmp_path, **sides | {"a": str(tmp_path / "photo")})


@pytest.mark.parametrize("pattern", [*TWO_FOLDERS, "{}_A {}_B"])
@pytest.mark.parametrize("nested", ["", "x"])
def test_the_sides_may_have_any_name(tmp_path: Path, pattern: str, nested: str) -> None:
    pattern = pattern.replace("A", "Images").replace("B", "masks")
    for part, name in (("train", "1.png"), ("val", "2.png"), ("exam", "3.png")):
        for folder in pattern.format(part, part).split():
            place(tmp_path / nested / folder, name)
    split = find_pairs(tmp_path, a="images", b="masks")
    assert (two(split.train), two(split.val)) == ([("1.png",) * 2], [("2.png",) * 2])
    assert split.left_out.count("1 .png in") == 2
    exam = str(Path(nested, "exam"))
    assert two(find_pairs(tmp_path, a="images", b="masks", val_dir=exam).val) == [("3.png",) * 2]
    with pytest.raises(FileNotFoundError, match=r"val_dir .*lost does not exist"):
        find_pairs(tmp_path, a="images", b="masks", val_dir="lost")
    with pytest.raises(ValueError, match=r"no pictures in folders image and masks \(1 \.png in "):
        find_pairs(tmp_path, a="image", b="masks")


def test_folders_of_a_set_pair_up_by_their_paths(tmp_path: Path) -> None:
    for part in ("train", "val"):
        for side, suffix in (("A", ".jpg"), ("B", ".png")):
            for city in ("bonn", "jena", "jena/west"):
                place(tmp_path / side / part / city, f"1{suffix}", f"2{suffix}")
    split = find_pairs(tmp_path)
    assert [pair.key for pair in split.train] == [
        *("bonn/1.jpg", "bonn/2.jpg", "jena/1.jpg", "jena/2.jpg"),
        *("jena/west/1.jpg", "jena/west/2.jpg"),
    ]
    assert all(pair.b == tmp_path / "B/train" / f"{pair.name}.png" for pair in split.train)
    assert (len(split.val), split.left_out) == (6, "")
    (tmp_path / "B/val/jena/2.png").rename(tmp_path / "B/val/2.png")
    with pytest.raises(ValueError, match=r"only in .*A.val: jena/2\.jpg\n.*B.val: 2\.png"):
        find_pairs(tmp_path)


@pytest.mark.parametrize("folders", ["A/{} B/{}", "train/{}"])
def test_folders_to_validate_on_are_not_trained_on(tmp_path: Path, folders: str) -> None:
    for folder in folders.split():
        for part in ("", "Val"):
            place(tmp_path / folder.format(part), "1.png", "2.png")
    with pytest.raises(ValueError, match="2 of 4 training pairs or shards are also for validation"):
        find_pairs(tmp_path)


def test_a_flat_folder_has_no_sets_below_it(tmp_path: Path) -> None:
    place(tmp_path, "1.png", "2.png")
    place(tmp_path / "val", "3.png")
    with pytest.raises(ValueError, match="more than one set"):
        find_pairs(tmp_path)


def test_side_by_side_pictures_may_lie_in_folders(tmp_path: Path) -> None:
    place(tmp_path / "train/bonn", "1.png")
    place(tmp_path / "train/jena", "1.png")
    place(tmp_path / "val", "1.png")
    split = find_pairs(tmp_path)
    assert [pair.name for pair in split.train] == ["bonn/1", "jena/1"]


@pytest.mark.parametrize("folder", ["{}", "{}/x", ""])
@pytest.mark.parametrize(
    ("a", "b", "suffixes"),
    [
        ("1_A.png", "1_b.PNG", ("*_A", "*_B")),
        ("1.png", "1_mask.png", ("", "*_mask")),
        ("1.jpg", "1.png", ("*.jpg", "*.png")),
        ("1.jpg", "1.png", ("", "*.png")),
    ],
)
def test_names_may_tell_the_sides_apart(
    tmp_path: Path, folder: str, a: str, b: str, suffixes: tuple[str, str]
) -> None:
    for part in ("train", "val"):
        place(tmp_path / folder.format(part), a, b, a.replace("1", "2"), b.replace("1", "2"))
    split = find_pairs(tmp_path, a=suffixes[0], b=suffixes[1])
    assert (a, b) in two(split.train + split.val)
    assert len(split.train + split.val) == (4 if folder else 2)
    assert split.layout.startswith("names in ")
    (tmp_path / folder.format("train") / b.replace("1", "2")).unlink()
    with pytest.raises(ValueError, match=f"only in .*: (x/)?{a.replace('1', '2')}"):
        find_pairs(tmp_path, a=suffixes[0], b=suffixes[1])


def test_names_without_either_ending_are_left_out(tmp_path: Path) -> None:
    place(tmp_path, "1_A.png", "1_B.png", "2_A.png", "2_B.png", "preview.png")
    split = find_pairs(tmp_path, a="*_A", b="*_B")
    assert split.left_out.endswith(": 1 .png")
    with pytest.raises(ValueError, match=r"no pictures whose names end in _C \(5 \.png\)"):
        find_pairs(tmp_path, a="*_A", b="*_C")


def test_folders_and_endings_together(tmp_path: Path) -> None:
    place(tmp_path / "x/images", "1.jpg", "2.jpg")
    place(tmp_path / "x/masks", "1_mask.gif", "1_mask.png", "2_mask.png")
    split = find_pairs(tmp_path / "x", a="images", b="masks/*_mask")
    pairs = [("1.jpg", "1_mask.png"), ("2.jpg", "2_mask.png")]
    assert sorted(two(split.train + split.val)) == pairs
    for part in ("train", "val"):
        place(tmp_path / "y" / part / "A", "1_A.jpg")
        place(tmp_path / "y" / part / "B", "1_B.jpg")
    with pytest.raises(ValueError, match="set a and b to what the names"):
        find_pairs(tmp_path / "y")
    split = find_pairs(tmp_path / "y", a="*_A", b="*_B")
    assert two(split.train) == two(split.val) == [("1_A.jpg", "1_B.jpg")]


def test_named_folders_may_hold_two_folders_each(tmp_path: Path) -> None:
    for folder in ("learn/A", "learn/B", "check/A", "check/B"):
        place(tmp_path / folder, "1.png")
    split = find_pairs(tmp_path, train_dir="learn", val_dir="check")
    assert two(split.train) == two(split.val) == [("1.png", "1.png")]


def test_names_match_whatever_their_case_or_unicode_form(tmp_path: Path) -> None:
    place(tmp_path / "trainA", "H\u00e4user 1.JPG", "b.jpg")
    place(tmp_path / "trainB", "ha\u0308user 1.png", "B.png")
    place(tmp_path / "valA", "1.jpg")
    place(tmp_path / "valB", "1.png")
    assert len(find_pairs(tmp_path).train) == 2


def test_everything_that_does_not_pair_up_is_listed_at_once(tmp_path: Path) -> None:
    place(tmp_path / "trainA", "1.jpg", "2.jpg", "2.png", "lonely.jpg")
    place(tmp_path / "trainB", "1.png", "2.png", "widow.png")
    place(tmp_path / "valA", *(f"{n:02}.png" for n in range(31)))
    place(tmp_path / "valB", "00.png")
    with pytest.raises(ValueError, match="do not pair up") as caught:
        find_pairs(tmp_path)
    for line in (
        f"  only in {tmp_path / 'trainA'}: lonely.jpg\n",
        f"  the same name in {tmp_path / 'trainA'}: 2.jpg = 2.png\n",
        f"  only in {tmp_path / 'trainB'}: widow.png\n",
        f"  only in {tmp_path / 'valA'}: 01.png, 02.png, ",
        ", 20.png, and 10 more\n",
    ):
        assert line in str(caught.value)
    assert "Rename, add or remove" in str(caught.value)


def test_a_half_that_is_empty_is_named(tmp_path: Path) -> None:
    place(tmp_path / "trainA", "1.png")
    place(tmp_path / "trainB")
    with pytest.raises(ValueError, match=r"trainB holds no pictures"):
        find_pairs(tmp_path)


def test_two_layouts_in_one_folder_are_not_chosen_between(tmp_path: Path) -> None:
    place(tmp_path / "train", "1.png")
    place(tmp_path / "trainA", "1.png")
    place(tmp_path / "trainB", "1.png")
    with pytest.raises(ValueError, match="more than one set") as caught:
        find_pairs(tmp_path)
    assert f"  {tmp_path / 'trainA'} and {tmp_path / 'trainB'}\n" in str(caught.value)
    assert f"  {tmp_path / 'train'}\n" in str(caught.value)


def test_two_folders_of_other_names_are_listed_with_the_settings(tmp_path: Path) -> None:
    place(tmp_path / "photos", "1.png")
    place(tmp_path / "labels", "1.png")
    with pytest.raises(ValueError, match="set a and b to their names") as caught:
        find_pairs(tmp_path)
    assert f"  {tmp_path / 'photos'}" in str(caught.value)


def test_input_and_target_must_be_two_folders(tmp_path: Path) -> None:
    place(tmp_path / "x", "1.png", "2.png")
    (tmp_path / "y").symlink_to("x")
    with pytest.raises(ValueError, match="A and B are the same folder"):
        find_pairs(tmp_path, a="x", b="y")


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        ("*_A", "*_A", "A and B are the same folder"),
        ("/x/photos", "", "one is the path of a folder"),
        ("/x/photos", "masks", "one is the path of a folder"),
        ("*_A", "/x/masks/*_B", "one is the path of a folder"),
    ],
)
def test_settings_that_do_not_tell_the_sides_apart(
    tmp_path: Path, a: str, b: str, message: str
) -> None:
    place(tmp_path, "1_A.png", "2_A.png")
    with pytest.raises(ValueError, match=message):
        find_pairs(tmp_path, a=a, b=b)


def test_a_folder_by_its_path_may_have_an_ending(tmp_path: Path) -> None:
    place(tmp_path / "photos", "1.jpg", "2.jpg")
    place(tmp_path / "masks", "1_mask.png", "2_mask.png", "2_edge.png")
    a, b = str(tmp_path / "photos"), str(tmp_path / "masks/*_mask")
    split = find_pairs(tmp_path / "nowhere", a=a, b=b)
    assert sorted(two(split.train + split.val)) == [
        ("1.jpg", "1_mask.png"),
        ("2.jpg", "2_mask.png"),
    ]


def test_a_link_is_the_picture_that_it_leads_to(tmp_path: Path) -> None:
    place(tmp_path / "train", "1.png", "2.png", "3.png")
    (tmp_path / "val").mkdir()
    (tmp_path / "val/9.png").symlink_to("../train/2.png")
    with pytest.raises(
        ValueError, match=r"1 of 3 training pairs or shards are also .*train/2\.png"
    ):
        find_pairs(tmp_path)


def test_what_does_not_pair_up_may_be_left_out(tmp_path: Path) -> None:
    place(tmp_path / "A", "1.jpg", "2.jpg", "3.jpg", "lonely.jpg", "4.jpg", "4.png")
    place(tmp_path / "B", "1.png", "2.png", "3.png", "4.png")
    split = find_pairs(tmp_path, on_bad_picture="skip")
    assert sorted(pair.name for pair in split.train + split.val) == ["1", "2", "3"]
    assert "only in" in split.left_out
    assert "lonely.jpg" in split.left_out
    assert "the same name in" in split.left_out
    for path in (tmp_path / "B").iterdir():
        path.rename(path.with_name(f"x{path.name}"))
    with pytest.raises(ValueError, match="do not pair up"):
        find_pairs(tmp_path, on_bad_picture="skip")


def test_a_part_of_which_nothing_pairs_up_is_not_left_out(tmp_path: Path) -> None:
    for name in ("trainA/1.jpg", "trainB/1.png", "valA/1.jpg", "valB/2.png"):
        place(tmp_path / Path(name).parent, Path(name).name)
    with pytest.raises(ValueError, match="do not pair up"):
        find_pairs(tmp_path, on_bad_picture="skip")


# The line at the start


def test_one_line_describes_what_was_found(tmp_path: Path) -> None:
    place(tmp_path / "train", "1.png", "2.png")
    place(tmp_path / "val", "1.png")
    split = find_pairs(tmp_path)
    alike, varied = [(600, 600)] * 3, [(600, 600), (300, 400), (500, 500)]
    start = "maps: 2 train and 1 val pairs, side by side, "
    assert split.describe("maps", alike) == start + "1200x600"
    assert split.describe("maps", varied) == start + "800x300 to 1200x600"


def test_the_line_gives_the_size_of_a_file_of_two_folders(tmp_path: Path) -> None:
    for folder in ("A", "B"):
        place(tmp_path / folder, "1.png", "2.png")
    described = find_pairs(tmp_path).describe("facades", [(300, 400)] * 2)
    assert described == (
        "facades: 1 train and 1 val pairs, two folders, 1 of 2 held out by val_fraction, 400x300"
    )


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such a name")
def test_a_name_that_is_not_valid_unicode_is_taken(tmp_path: Path) -> None:
    place(tmp_path, os.fsdecode(b"\xff.png"), "1.png")
    assert len(find_pairs(tmp_path).train) == 1
