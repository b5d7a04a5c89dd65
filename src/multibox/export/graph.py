"""Builds the whole ONNX graph of a detector around the graph of its network.

    images (B, H, W, 3) uint8 RGB  ->  boxes (B, N, 4), scores (B, N), labels (B, N)

The images of a batch may have any size, but all of them the same. The graph resizes them to the
input of the network with the same bits as OpenCV's INTER_LINEAR, and suppresses boxes by the rule
of `ssd/detect.py`. Boxes are xyxy in pixels of the given images, clipped to them. Rows are sorted
by descending score. Rows without a detection come last, with the score 0, the label -1 and zeros.

OpenCV resizes with whole numbers (`HResizeLinear` and `VResizeLinear` of its `resize.cpp`): weights
are in 2048ths, and two shifts drop digits. Products of up to 24 bits are exact in float32, and the
only larger one is computed in two parts.
"""

import numpy as np
import onnx
import onnx.parser
from onnx import ModelProto, TensorProto

from multibox.ssd.detect import DetectionSettings

IMAGES = "images"
OUTPUTS = ("boxes", "scores", "labels")


def detector_graph(
    network: ModelProto,
    size: tuple[int, int],
    shape: tuple[int, int],
    settings: DetectionSettings,
) -> ModelProto:
    """Returns a graph from images of any size to detections.

    Args:
        network: A graph with the input `pixels` (B, *size, 3), uint8, and the outputs `unit_boxes`
            (B, K, 4) and `class_scores` (B, K, C).
        size: (height, width) of the network's input in pixels.
        shape: (K, C).
        settings: The thresholds of the suppression.
    """
    inner = onnx.compose.add_prefix(
        network, "network/", rename_inputs=False, rename_outputs=False, rename_functions=False
    )
    per_class = min(settings.per_class, shape[0])
    per_image = min(settings.per_image, shape[1] * per_class)
    before = _parse(inner, f"(uint8[B, H, W, 3] {IMAGES}) => (pixels)", _resizing(*size))
    lines = _suppression(per_class, per_image, shape[1], settings)
    after = _parse(inner, "(images, unit_boxes, class_scores) => (boxes, scores, labels)", lines)
    outputs = [
        onnx.helper.make_tensor_value_info(name, kind, ["B", per_image, *rest])
        for name, kind, rest in zip(
            OUTPUTS,
            (TensorProto.FLOAT, TensorProto.FLOAT, TensorProto.INT64),
            ([4], [], []),
            strict=True,
        )
    ]
    graph = onnx.helper.make_graph(
        [*before.graph.node, *inner.graph.node, *after.graph.node],
        "detector",
        before.graph.input,
        outputs,
        initializer=[*before.graph.initializer, *inner.graph.initializer, *after.graph.initializer],
    )
    model = onnx.helper.make_model(
        graph,
        opset_imports=inner.opset_import,
        ir_version=inner.ir_version,
        functions=inner.functions,
        producer_name="multibox",
    )
    onnx.checker.check_model(model)
    return model


def _parse(model: ModelProto, signature: str, lines: str) -> ModelProto:
    """Returns a part of the graph, written in ONNX's text syntax."""
    opset = next(each.version for each in model.opset_import if not each.domain)
    head = f'<ir_version: {model.ir_version}, opset_import: ["" : {opset}]>'
    part = onnx.parser.parse_model(f"{head}\npart {signature}\n{{\n{lines}\n}}")
    # OpenCV reads constants as initializers only.
    for node in [node for node in part.graph.node if node.op_type == "Constant"]:
        (attribute,) = node.attribute
        dtype = np.float32 if "float" in attribute.name else np.int64
        value = np.array(onnx.helper.get_attribute_value(attribute), dtype)
        part.graph.initializer.append(onnx.numpy_helper.from_array(value, node.output[0]))
        part.graph.node.remove(node)
    return part


def _resizing(height: int, width: int) -> str:
    """Returns the resizing. `rows` 0 and 1 are those above and below an output pixel's centre."""
    lines = f"""
    zero = Constant<value_float = 0.0>()
    one = Constant<value_float = 1.0>()
    levels = Constant<value_float = 2048.0>()
    finer = Constant<value_float = 16.0>()
    coarser = Constant<value_float = 0.0625>()
    few = Constant<value_float = 0.015625>()
    tiny = Constant<value_float = 0.0009765625>()
    two = Constant<value_float = 2.0>()
    quarter = Constant<value_float = 0.25>()
    as_columns = Constant<value_ints = [-1, 1]>()
    as_rows = Constant<value_ints = [-1, 1, 1]>()
    {_axis("y", 1, height)}
    {_axis("x", 2, width)}
    before_x = Less(low_x, zero)
    after_x = GreaterOrEqual(low_x, last_x)
    outside_x = Or(before_x, after_x)
    part_x = Where(outside_x, zero, fraction_x)
    part_y = Identity(fraction_y)
    {_weights("y")}
    {_weights("x")}
    """
    for row in (0, 1):
        # OpenCV: ((S >> 4) * b) >> 16, where b = 64 * high + low.
        lines += f"""
        rows_{row} = Gather<axis = 1>({IMAGES}, place{row}_y)
        left{row}_bytes = Gather<axis = 2>(rows_{row}, place0_x)
        right{row}_bytes = Gather<axis = 2>(rows_{row}, place1_x)
        left{row} = Cast<to = 1>(left{row}_bytes)
        right{row} = Cast<to = 1>(right{row}_bytes)
        sixteenth{row} = Mul(weight{row}_x, coarser)
        across{row} = Reshape(sixteenth{row}, as_columns)
        down{row} = Reshape(weight{row}_y, as_rows)
        """
    for row in (0, 1):
        lines += f"""
        lefts{row} = Mul(left{row}, across0)
        rights{row} = Mul(right{row}, across1)
        sums{row} = Add(lefts{row}, rights{row})
        level{row} = Floor(sums{row})
        down{row}_64ths = Mul(down{row}, few)
        high{row} = Floor(down{row}_64ths)
        low{row} = Sub(down{row}_64ths, high{row})
        lows{row} = Mul(level{row}, low{row})
        carry{row} = Floor(lows{row})
        highs{row} = Mul(level{row}, high{row})
        product{row} = Add(highs{row}, carry{row})
        shifted{row} = Mul(product{row}, tiny)
        share{row} = Floor(shifted{row})
        """
    return f"""{lines}
    shares = Add(share0, share1)
    rounding = Add(shares, two)
    quarters = Mul(rounding, quarter)
    bounded = Floor(quarters)
    pixels = Cast<to = 2>(bounded)
    """


def _axis(name: str, number: int, size: int) -> str:
    """Returns the place of each output pixel's centre among the given pixels, on one axis.

    The place is (2 i + 1) n / 2 s - 1 / 2 for the output pixel i of s and n given pixels, rounded
    to float32 once. Because OpenVINO multiplies by the reciprocal instead of dividing, the quotient
    is corrected by its remainder, which two products of few bits give exactly.
    """
    odd = ", ".join(f"{2 * i + 1}.0" for i in range(size))
    return f"""
    count_{name} = Shape<start = {number}, end = {number + 1}>({IMAGES})
    given_{name} = Cast<to = 1>(count_{name})
    last_{name} = Sub(given_{name}, one)
    odd_{name} = Constant<value_floats = [{odd}]>()
    length_{name} = Constant<value_float = {size}.0>()
    twice_{name} = Constant<value_float = {2 * size}.0>()
    scaled_{name} = Mul(odd_{name}, given_{name})
    dividend_{name} = Sub(scaled_{name}, length_{name})
    quotient_{name} = Div(dividend_{name}, twice_{name})
    sixteenths_{name} = Mul(quotient_{name}, finer)
    whole_sixteenths_{name} = Floor(sixteenths_{name})
    coarse_{name} = Mul(whole_sixteenths_{name}, coarser)
    fine_{name} = Sub(quotient_{name}, coarse_{name})
    coarse_product_{name} = Mul(coarse_{name}, twice_{name})
    fine_product_{name} = Mul(fine_{name}, twice_{name})
    coarse_rest_{name} = Sub(dividend_{name}, coarse_product_{name})
    remainder_{name} = Sub(coarse_rest_{name}, fine_product_{name})
    correction_{name} = Div(remainder_{name}, twice_{name})
    place_{name} = Add(quotient_{name}, correction_{name})
    low_{name} = Floor(place_{name})
    fraction_{name} = Sub(place_{name}, low_{name})
    next_{name} = Add(low_{name}, one)
    low_inside_{name} = Max(low_{name}, zero)
    low_place_{name} = Min(low_inside_{name}, last_{name})
    place0_{name} = Cast<to = 7>(low_place_{name})
    next_inside_{name} = Max(next_{name}, zero)
    next_place_{name} = Min(next_inside_{name}, last_{name})
    place1_{name} = Cast<to = 7>(next_place_{name})
    """


def _weights(name: str) -> str:
    """Returns the weights of the two given pixels, in 2048ths."""
    return f"""
    other_part_{name} = Sub(one, part_{name})
    exact0_{name} = Mul(other_part_{name}, levels)
    exact1_{name} = Mul(part_{name}, levels)
    weight0_{name} = Round(exact0_{name})
    weight1_{name} = Round(exact1_{name})
    """


def _suppression(
    per_class: int, per_image: int, num_classes: int, settings: DetectionSettings
) -> str:
    """Returns the suppression. A group is a class of an image.

    ONNX's TopK takes the lower index first if values are equal, so ties are broken as in `detect`:
    by class, then by default box. OpenVINO's takes any of them. Its `stable` TopK takes 0.3 s.

    Most default boxes have no score above the threshold in any image of the batch. They are left
    out before TopK, which would take half the time of a small network. Empty boxes are appended, so
    that there are enough for TopK.
    """
    return f"""
    outer_axes = Constant<value_ints = [0, 2]>()
    score_threshold = Constant<value_float = {settings.score_threshold!r}>()
    best_of_boxes = ReduceMax<keepdims = 0>(class_scores, outer_axes)
    is_candidate = Greater(best_of_boxes, score_threshold)
    candidate_rows = NonZero(is_candidate)
    all_candidates = Constant<value_ints = [-1]>()
    candidates = Reshape(candidate_rows, all_candidates)
    candidate_scores = Gather<axis = 1>(class_scores, candidates)
    candidate_boxes = Gather<axis = 1>(unit_boxes, candidates)
    empty_rows = Constant<value_ints = [0, 0, 0, 0, {per_class}, 0]>()
    padded_scores = Pad(candidate_scores, empty_rows)
    padded_boxes = Pad(candidate_boxes, empty_rows)
    by_class = Transpose<perm = [0, 2, 1]>(padded_scores)
    per_class = Constant<value_ints = [{per_class}]>()
    best_scores, best_places = TopK<axis = 2>(by_class, per_class)
    as_indices = Constant<value_ints = [3]>()
    best_indices = Unsqueeze(best_places, as_indices)
    best_boxes = GatherND<batch_dims = 1>(padded_boxes, best_indices)
    box_groups = Constant<value_ints = [-1, {per_class}, 4]>()
    score_groups = Constant<value_ints = [-1, 1, {per_class}]>()
    grouped_boxes = Reshape(best_boxes, box_groups)
    grouped_scores = Reshape(best_scores, score_groups)
    iou_threshold = Constant<value_float = {settings.iou_threshold!r}>()
    kept = NonMaxSuppression(
      grouped_boxes, grouped_scores, per_class, iou_threshold, score_threshold
    )
    zero_index = Constant<value_int = 0>()
    two_index = Constant<value_int = 2>()
    kept_groups = Gather<axis = 1>(kept, zero_index)
    kept_ranks = Gather<axis = 1>(kept, two_index)
    group_starts = Mul(kept_groups, per_class)
    kept_places = Add(group_starts, kept_ranks)
    flat = Constant<value_ints = [-1]>()
    flat_scores = Reshape(best_scores, flat)
    kept_scores = Gather(flat_scores, kept_places)
    zeros = Sub(flat_scores, flat_scores)
    remaining_scores = ScatterElements(zeros, kept_places, kept_scores)
    image_scores = Constant<value_ints = [-1, {num_classes * per_class}]>()
    image_boxes = Constant<value_ints = [-1, {num_classes * per_class}, 4]>()
    scores_by_image = Reshape(remaining_scores, image_scores)
    boxes_by_image = Reshape(best_boxes, image_boxes)
    per_image = Constant<value_ints = [{per_image}]>()
    scores, order = TopK<axis = 1>(scores_by_image, per_image)
    as_pairs = Constant<value_ints = [2]>()
    order_indices = Unsqueeze(order, as_pairs)
    found_boxes = GatherND<batch_dims = 1>(boxes_by_image, order_indices)
    low_edge = Constant<value_float = 0.0>()
    high_edge = Constant<value_float = 1.0>()
    inside = Clip(found_boxes, low_edge, high_edge)
    given_shape = Shape({IMAGES})
    width_height = Constant<value_ints = [2, 1, 2, 1]>()
    given_sides = Gather<axis = 0>(given_shape, width_height)
    sides_px = Cast<to = 1>(given_sides)
    all_boxes = Mul(inside, sides_px)
    present = Greater(scores, low_edge)
    present_as_number = Cast<to = 1>(present)
    present_column = Unsqueeze(present_as_number, as_pairs)
    boxes = Mul(all_boxes, present_column)
    classes = Div(order, per_class)
    absent = Constant<value_ints = [-1]>()
    labels = Where(present, classes, absent)
    """
