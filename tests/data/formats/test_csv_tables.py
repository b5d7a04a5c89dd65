"""CSV tables: columns of many tools, boxes as literal numbers, and that every fault is named."""

import zipfile
from pathlib import Path

import numpy as np
import pytest
import simplejpeg

from multibox.data.dataset import Dataset
from multibox.data.formats.layouts import known_splits, open_dataset, read_dataset
from multibox.errors import DataError

WIDTH, HEIGHT = 200, 100
IMAGE = simplejpeg.encode_jpeg(np.full((HEIGHT, WIDTH, 3), 90, np.uint8))
HEADER = "filename,width,height,class,xmin,ymin,xmax,ymax\n"
ROW = "a.jpg,200,100,cat,10,20,110.5,80\n"
BOX = [10, 20, 110.5, 80]


def read(root: Path, text: str | bytes, split: str = "all", **options: object) -> Dataset:
    """Reads a table beside two images."""
    root.mkdir(exist_ok=True)
    for name in ("a.jpg", "b.jpg"):
        (root / name).write_bytes(IMAGE)
    (root / "table.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_dataset(root, split, **options)


def boxes(dataset: Dataset) -> dict[str, list[list[float]]]:
    return {item.image_id: item.boxes_px.tolist() for item in dataset.annotations}


@pytest.mark.parametrize(
    "text",
    [
        HEADER + ROW,
        "\ufeff" + (HEADER + ROW).replace("\n", "\r\n"),
        (HEADER + ROW).replace(",", ";"),
        (HEADER + ROW).replace(",", "\t"),
        '"filename", "class", "xmin", "ymin", "xmax", "ymax"\n"a.jpg", "cat", 10, 20, 110.5, 80',
        "/home/x/a.jpg,10,20,110.5,80,cat\n",
        "frame,xmin,xmax,ymin,ymax,class_id\na.jpg,10,110.5,20,80,cat",
        "ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,IsOccluded,IsTruncated,IsGroupOf\n"
        "a,x,cat,1,0.05,0.5525,0.2,0.8,0,0,0",
        "image,label,left,top,right,bottom\nC:\\x\\a.jpg,cat,10,20,110.5,80",
        "image_name,bbox_x,bbox_y,bbox_w,bbox_h,category_name\na.jpg,10,20,100.5,60,cat",
        'image_id,width,height,bbox,name\na,200,100,"[10.0, 20.0, 100.5, 60.0]",cat',
        "img,Class Name,x,y,w,h\na.jpg,cat,0.05,0.2,0.5025,0.6",
        "path,x_min,y_min,x_max,y_max,label,image_width,image_height\na.jpg,10,20,110.5,80,cat,,",
    ],
)
def test_columns_of_many_tools(tmp_path: Path, text: str) -> None:
    dataset = read(tmp_path, text)
    assert open_dataset(tmp_path).format == "CSV"
    assert dataset.classes == ("cat",)
    assert boxes(dataset) == {"a": [BOX]}
    assert not dataset.annotations[0].difficult.any()


def test_rows_of_an_image_may_be_anywhere(tmp_path: Path) -> None:
    text = HEADER + "b.jpg,200,100,dog,1,2,30,40\n" + ROW + "\nb.jpg,200,100,cat,5,6,70,80\n"
    dataset = read(tmp_path, text)
    assert dataset.classes == ("cat", "dog")
    assert boxes(dataset) == {"a": [BOX], "b": [[1, 2, 30, 40], [5, 6, 70, 80]]}
    assert dataset.annotations[1].labels.tolist() == [1, 0]


def test_images_without_objects(tmp_path: Path) -> None:
    assert boxes(read(tmp_path, "a.jpg,10,20,110.5,80,cat\nb.jpg,,,,,\n")) == {"a": [BOX], "b": []}


def test_the_splits_of_a_column(tmp_path: Path) -> None:
    text = "file,split,class,xmin,ymin,xmax,ymax\na.jpg,train,cat,10,20,110.5,80\n"
    text += "b.jpg,test,cat,1,2,3,4\n"
    assert boxes(read(tmp_path, text, "train")) == {"a": [BOX]}
    assert known_splits(tmp_path) == ("train", "test")
    assert boxes(read_dataset(tmp_path, "test")) == {"b": [[1, 2, 3, 4]]}


def test_a_file_for_each_split(tmp_path: Path) -> None:
    for split, name in (("train", "a"), ("test", "b")):
        (tmp_path / "images").mkdir(exist_ok=True)
        (tmp_path / "images" / f"{name}.jpg").write_bytes(IMAGE)
        (tmp_path / "data").mkdir(exist_ok=True)
        row = ROW.replace("a.jpg", f"{name}.jpg")
        (tmp_path / "data" / f"{split}_labels.csv").write_text(HEADER + row)
    assert known_splits(tmp_path) == ("test", "train")
    assert boxes(read_dataset(tmp_path, "train")) == {"a": [BOX]}


def test_numbers_of_classes(tmp_path: Path) -> None:
    text = HEADER + ROW.replace("cat", "1") + ROW.replace("cat", "0")
    dataset = read(tmp_path, text)
    assert dataset.classes == ("0", "1")
    assert [note.kind for note in dataset.notes] == ["class-names-missing"]
    (tmp_path / "classes.csv").write_text("dog,0\ncat,1\x1c\nfox,2\n")
    dataset = read_dataset(tmp_path, "all")
    assert dataset.classes == ("dog", "cat")
    assert dataset.annotations[0].labels.tolist() == [1, 0]
    (tmp_path / "classes.csv").write_text("cat,1\n")
    with pytest.raises(DataError, match=r"line 3: its class is 0, but .* 1 names, numbered from 1"):
        read_dataset(tmp_path, "all")


def test_codes_of_open_images(tmp_path: Path) -> None:
    header = "ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,IsGroupOf\n"
    (tmp_path / "class-descriptions-boxable.csv").write_text('/m/01yrx,"Cat, small"\n')
    dataset = read(tmp_path, f"{header}a,x,/m/01yrx,1,0.05,0.5525,0.2,0.8,1\n")
    assert dataset.classes == ("Cat, small",)
    assert boxes(dataset) == {"a": [BOX]}
    assert dataset.annotations[0].difficult.tolist() == [True]


def test_a_table_without_classes_has_one(tmp_path: Path) -> None:
    dataset = read(tmp_path, 'image_id,width,height,bbox\na,200,100,"[10, 20, 100.5, 60]"\n')
    assert dataset.classes == ("object",)
    assert "they are called 'object'" in dataset.notes[0].text


@pytest.mark.parametrize(
    ("row", "kind", "message"),
    [
        ("a.jpg,200,100,cat,10,20,110", "columns-malformed", "has 7 columns, but the table has 8"),
        ("a.jpg,200,100,cat,x,20,30,40", "number-malformed", "its column 'xmin' is 'x', not a"),
        ("a.jpg,200,100,cat,nan,20,30,40", "number-malformed", "its column 'xmin' is 'nan'"),
        ("a.jpg,200,100,cat,,20,30,40", "number-malformed", "its column 'xmin' is ''"),
        ("a.jpg,200,100,,10,20,30,40", "name-empty", "its class is empty"),
        ("a.jpg,200,100,c\x07t,10,20,30,40", "text-malformed", "its class is 'c\\x07t'"),
        ("a.jpg,200,100,cat,30,20,10,40", "box-empty", "is empty"),
        ("a.jpg,200,100,cat,10,20,300,40", "box-outside", "leaves the image of 200 x 100"),
        ("a.jpg,100,200,cat,10,20,30,40", "size-differs", "its width and height differ"),
        ("a.jpg,1.5,200,cat,10,20,30,40", "number-malformed", "its column 'width' is '1.5'"),
        ("b.jpg,100,200,cat,10,20,30,40", "size-differs", "its size is 100 x 200"),
        ("c.jpg,200,100,cat,10,20,30,40", "image-missing", "its image 'c.jpg' does not exist"),
        (",200,100,cat,10,20,30,40", "text-malformed", "its image name '' names no file"),
        ("../../a,200,100,cat,1,2,300,4", "box-outside", "leaves the image of 200 x 100"),
    ],
)
def test_faults_of_rows(tmp_path: Path, row: str, kind: str, message: str) -> None:
    dataset = read(tmp_path, f"{HEADER}{ROW}{row}\n", on_bad="skip")
    (fault,) = dataset.faults
    assert (fault.kind, fault.position) == (kind, "line 3")
    assert fault.file == tmp_path / "table.csv"
    assert message in fault.reason
    assert boxes(dataset) == {"a": [BOX]}
    with pytest.raises(DataError, match="1 fault"):
        read_dataset(tmp_path, "all")


def test_fractions_in_a_table_of_pixels_are_empty_or_outside(tmp_path: Path) -> None:
    """Most rows decide, so that one row above 1 does not make all others tiny."""
    text = "img,class,x,y,w,h\na.jpg,cat,0.05,0.2,0.5025,0.6\nb.jpg,cat,0,0,1,1\n"
    dataset = read(tmp_path, text + "b.jpg,cat,0.5,0.5,1.5,0.2\n", on_bad="skip")
    assert boxes(dataset) == {"a": [BOX], "b": [[0, 0, 200, 100]]}
    assert [fault.kind for fault in dataset.faults] == ["box-outside"]


@pytest.mark.parametrize(
    ("text", "kind", "message"),
    [
        (f"{HEADER}{ROW}".encode("utf-16"), "list-encoding", "is not UTF-8"),
        (f"{HEADER}caf\xe9.jpg,1,1,x,1,1,1,1".encode("latin-1"), "list-encoding", "is not UTF-8"),
        (f'{HEADER}"a.jpg,200,100,cat,1,2,3,4\n', "csv-malformed", "unexpected end of data"),
        (f"{HEADER}{'x' * 200_000},1,1,cat,1,2,3,4\n", "csv-malformed", "field larger than"),
        ("filename,class\na.jpg,cat\n", "csv-header", "has the columns filename, class, but none"),
        ("annotation_id,image,label,lead_time\n1,a.jpg,[],2", "csv-header", "Export the project"),
        ("class,xmin,ymin,xmax,ymax\ncat,1,2,3,4", "csv-header", "but none of the image"),
    ],
)
def test_unusable_tables(tmp_path: Path, text: str | bytes, kind: str, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        read(tmp_path, text)
    assert caught.value.kind == kind
    assert caught.value.file == tmp_path / "table.csv"


@pytest.mark.parametrize(
    "text",
    [
        "epoch,train/box_loss,metrics/mAP50(B)\n1,2,3\n",
        "image,xmin,ymin,xmax,ymax,label,score\na.jpg,1,2,3,4,cat,0.9\n",
        "a,b\n1,2\n",
        "",
        "\x00\xff",
    ],
)
def test_other_tables_are_no_annotations(tmp_path: Path, text: str) -> None:
    with pytest.raises(DataError, match="no annotations in a known format"):
        read(tmp_path, text)


def test_xml_and_json_beside_a_table_are_the_annotations(tmp_path: Path) -> None:
    """As in the raccoon repository, where the table was made from the XML files."""
    read(tmp_path, HEADER + ROW)
    box = "<bndbox><xmin>1</xmin><ymin>2</ymin><xmax>3</xmax><ymax>4</ymax></bndbox>"
    xml = f"<annotation><object><name>dog</name>{box}</object></annotation>"
    (tmp_path / "a.xml").write_text(xml)
    assert open_dataset(tmp_path).format == "VOC XML"
    (tmp_path / "a.json").write_text(
        '{"images": [{"id": 1, "file_name": "a.jpg"}], "categories": [{"id": 1, "name": "x"}],'
        '"annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 4]}]}'
    )
    assert open_dataset(tmp_path).format == "COCO JSON"


def test_an_image_in_two_tables_is_a_fault(tmp_path: Path) -> None:
    (tmp_path / "more.csv").write_text(HEADER + ROW + ROW)
    dataset = read(tmp_path, HEADER + ROW, on_bad="skip")
    assert [fault.kind for fault in dataset.faults] == ["listed-twice"]
    assert boxes(dataset) == {"a": [BOX, BOX]}


def test_an_archive_is_read_like_its_folder(tmp_path: Path) -> None:
    expected = read(tmp_path / "x", HEADER + ROW)
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        for path in (tmp_path / "x").iterdir():
            archive.write(path, path.name)
    assert read_dataset(tmp_path / "x.zip", "all").digest == expected.digest


@pytest.mark.parametrize("images", ["check", "ignore"])
def test_a_name_with_a_control_character_is_a_fault(tmp_path: Path, images: str) -> None:
    text = f"a\0b.jpg,1,2,3,4,cat\na.jpg,{','.join(map(str, BOX))},cat\n"
    dataset = read(tmp_path, text, images=images, on_bad="skip")
    (fault,) = dataset.faults
    assert (fault.kind, fault.position) == ("text-malformed", "line 1")
    assert "its image name 'a\\x00b.jpg' is not plain text" in fault.reason


def test_sizes_suffice_when_images_are_not_checked(tmp_path: Path) -> None:
    text = HEADER + ROW.replace("a.jpg", "absent.jpg")
    assert boxes(read(tmp_path, text, images="ignore")) == {"absent": [BOX]}
