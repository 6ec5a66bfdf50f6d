"""Operations of TensorFlow that level portable takes: those whose bits were compared.

Each is named with the floating-point types of its inputs and outputs. The list is
written by benchmarks/repeatability/portable_ops.py --keep, from cases with the same
bits on two processors; benchmarks/records/portable_ops.json names them.
"""

from gpuzoo.runtime.portable import LEVEL

_UNKNOWN = (
    "its bits have not been compared between processors",
    "use another operation, or --level repeatable",
)
_APPROXIMATES = (
    "it starts from an approximation of the processor, another one on each vendor's",
    "write it with divisions and square roots, or use --level repeatable",
)
_IN_FLOAT32 = "give the layer dtype='float32', or use --level repeatable"
# Named with the size of their matrices: large ones are computed in blocks, whose sizes
# follow the caches.
_SIZED = {"MatrixInverse", "MatrixSolve"}
_APPROXIMATIONS = {
    "Rsqrt", "Reciprocal", "Inv", "Atan", "Atan2", "Erfinv", "Ndtri",
}  # fmt: skip
_LIST = """\
Abs float32
Acos float32
AddN
AddN complex64
AddN float32
AddV2
AddV2 complex64
AddV2 float32
AddV2 float64
All
Any
ArgMax float32
ArgMin float32
AsString
Asin float32
Asinh float32
AssignAddVariableOp float32
AssignSubVariableOp float32
AssignVariableOp
AssignVariableOp float32
Atan2 float32
Atanh float32
AvgPool float32
AvgPool3D float32
AvgPool3DGrad float32
AvgPoolGrad float32
BatchMatMulV2 float32
BatchToSpaceND float32
BiasAdd float32
BiasAddGrad float32
Bitcast float32
BitwiseAnd
BroadcastArgs
BroadcastGradientArgs
BroadcastTo
BroadcastTo float32
Bucketize float32
Cast
Cast complex64
Cast float32
Cast float32 float64
Cast float64
Ceil float32
Ceil float64
Complex complex64 float32
ConcatOffset
ConcatV2
ConcatV2 float32
Const
Const float32
Const float64
Conv2D float32
Conv2DBackpropFilter float32
Conv2DBackpropInput float32
Conv3D float32
Conv3DBackpropFilterV2 float32
Conv3DBackpropInputV2 float32
Cos float32
Cosh float32
Cumprod float32
Cumsum
Cumsum float32
DenseBincount
DenseBincount float32
DepthwiseConv2dNative float32
DepthwiseConv2dNativeBackpropFilter float32
DepthwiseConv2dNativeBackpropInput float32
DivNoNan float32
Elu float32
EluGrad float32
EmptyTensorList
EnsureShape float32
Equal
Equal float32
Erf float32
Exp float32
ExpandDims
ExpandDims float32
Expm1 float32
Fill
Fill float32
Floor float32
FloorDiv
FloorDiv float32
FloorMod
FloorMod float32
GatherNd float32
GatherV2
GatherV2 float32
GatherV2 float64
Greater
Greater float32
GreaterEqual
GreaterEqual float32
HSVToRGB float32
IRFFT complex64 float32
Identity
Identity float32
IdentityN float32
If float32
Imag complex64 float32
ImageProjectiveTransformV3 float32
InvertPermutation
IsFinite float32
IsInf float32
IsNan float32
LeakyRelu float32
LeakyReluGrad float32
LeftShift
Less
Less float32
LessEqual
LessEqual float32
ListDiff
Log float32
Log1p float32
LogSoftmax float32
LogicalAnd
LogicalOr
LookupTableFindV2
LowerBound float32
MatMul float32
MatrixBandPart float32
MatrixDiagPartV3 float32
MatrixDiagV3 float32
MatrixInverse float32 3x3
MatrixSetDiagV3
MatrixSolve float32 8x8
Max
Max float32
MaxPool float32
MaxPool3D float32
MaxPool3DGrad float32
MaxPoolGrad float32
Maximum
Maximum float32
Maximum float64
Mean float32
Min float32
Minimum
Minimum float32
Minimum float64
MirrorPad float32
MirrorPadGrad float32
Mul
Mul complex64
Mul float32
Mul float64
Neg
Neg float32
NoOp
NotEqual
NotEqual float32
OneHot float32
Pack
Pack float32
Pack float64
Pad
Pad float32
PadV2
Placeholder
Placeholder float32
Pow float32
Prod
Prod float32
RFFT complex64 float32
RGBToHSV float32
Range
Range float32
ReadVariableOp
ReadVariableOp float32
Real complex64 float32
RealDiv float32
RealDiv float64
Relu float32
Relu6 float32
Relu6Grad float32
ReluGrad float32
Reshape
Reshape float32
Reshape float64
ResizeBilinear float32
ResizeBilinearGrad float32
ResizeNearestNeighbor float32
ResizeNearestNeighborGrad float32
ResourceApplyAdam float32
ReverseV2
ReverseV2 float32
RightShift
Roll
Roll float32
Round float32
Round float64
ScatterNd float32
Select float32
SelectV2
SelectV2 float32
SelectV2 float64
Selu float32
SeluGrad float32
Shape
Shape float32
Shape float64
ShapeN float32
Sigmoid float32
SigmoidGrad float32
Sign float32
Sin float32
Sinh float32
Slice
Slice float32
Softmax float32
Softplus float32
Softsign float32
SoftsignGrad float32
SpaceToBatchND float32
SparseCross
SparseToDense
Split float32
SplitV float32
Sqrt float32
SqrtGrad float32
Square float32
SquaredDifference float32
Squeeze
Squeeze float32
StatelessIf float32
StatelessRandomGammaV3 float32
StatelessRandomGetKeyCounter
StatelessRandomNormalV2 float32
StatelessRandomUniformIntV2
StatelessRandomUniformV2 float32
StatelessWhile
StatelessWhile float32
StopGradient float32
StridedSlice
StridedSlice complex64
StridedSlice float32
StridedSliceGrad float32
StringToHashBucketFast
Sub
Sub float32
Sub float64
Sum
Sum float32
Tan float32
Tanh float32
TanhGrad float32
TensorListElementShape
TensorListFromTensor float32
TensorListGetItem float32
TensorListLength
TensorListPopBack
TensorListPopBack float32
TensorListPushBack
TensorListPushBack float32
TensorListReserve
TensorListSetItem float32
TensorListStack float32
Tile
Tile float32
TopKV2 float32
Transpose
Transpose float32
Unpack
Unpack float32
Unpack float64
UnsortedSegmentMax float32
UnsortedSegmentSum float32
VariableShape
Where
While float32
XlaDynamicUpdateSlice float32
ZerosLike
""".splitlines()
COMPARED = frozenset(_LIST)
_TYPES = frozenset(name.partition(" ")[0] for name in _LIST)


def with_dtypes(operation) -> str:
    """Return how the list names an operation: Exp float32; AddV2, of integers;
    Cast float16 float32; MatrixInverse float32 3x3."""
    dtypes = {t.dtype.base_dtype for t in (*operation.inputs, *operation.outputs)}
    names = sorted(x.name for x in dtypes if x.is_floating or x.is_complex)
    if operation.type in _SIZED:
        shape = operation.inputs[0].shape
        names.append("x".join(map(str, shape[-2:] if shape.rank else ("?",))))
    return " ".join((operation.type, *names))


def uncompared(operations):
    """Yield operations that are not on the list, each with a reason and a remedy:
    first those of no type on it, and casts, which the model may have named, last."""
    others = [one for one in operations if with_dtypes(one) not in COMPARED]
    for one in sorted(others, key=lambda x: (x.type in _TYPES, x.type == "Cast")):
        if one.type in _APPROXIMATIONS:
            yield one, *_APPROXIMATES
        elif one.type in _TYPES - _SIZED:
            dtypes = " and ".join(with_dtypes(one).split()[1:]) or "integers"
            yield one, f"level {LEVEL} does not compute it in {dtypes}", _IN_FLOAT32
        else:
            yield one, *_UNKNOWN
