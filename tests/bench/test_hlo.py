"""The counts of bench/hlo.py on programs whose FLOPs, traffic and moves are known."""

import jax
import jax.numpy as jnp
import pytest

from bench.hlo import Program


def compiled(function, *shapes: tuple[int, ...]) -> Program:
    arguments = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    return Program(jax.jit(function).lower(*arguments).compile().as_text() or "")


def layers(x: jax.Array, weights: jax.Array) -> jax.Array:
    return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, weights)[0]


def test_matmul_in_a_scan() -> None:
    assert compiled(layers, (32, 64), (5, 64, 64)).matmul_flops == 5 * 2 * 32 * 64 * 64


def test_nested_scans() -> None:
    def nested(x, weights):
        return jax.lax.scan(lambda x, _: (layers(x, weights), None), x, None, length=3)[0]

    assert compiled(nested, (32, 64), (5, 64, 64)).matmul_flops == 3 * 5 * 2 * 32 * 64 * 64


def test_matmuls_over_several_dimensions() -> None:
    assert compiled(lambda a, b: jnp.einsum("bij,bjk->bki", a, b), (4, 8, 16), (4, 16, 32)).matmul_flops == (
        2 * 4 * 8 * 16 * 32
    )
    assert compiled(lambda a, b: jnp.einsum("btd,dcnh->btcnh", a, b), (2, 8, 16), (16, 3, 4, 8)).matmul_flops == (
        2 * 2 * 8 * 16 * 3 * 4 * 8
    )


def test_convolution() -> None:
    def convolve(x, kernel):
        return jax.lax.conv_general_dilated(x, kernel, (1, 1), [(2, 2), (0, 0)])

    # Windows of 3 over 5 rows padded by 2: 7 places, of 21 taps 15 meet a row; 4 columns and windows of 1 meet all.
    assert compiled(convolve, (2, 3, 5, 4), (6, 3, 3, 1)).matmul_flops == 2 * 2 * 3 * 6 * 15 * 4


def test_traffic_counts_arrays_once_and_slices_by_size() -> None:
    size = 4 * 256 * 256
    once = compiled(lambda x, y: x + y, (256, 256), (256, 256))
    assert once.hbm_bytes == 3 * size
    looped = compiled(layers, (256, 256), (5, 256, 256)).hbm_bytes
    # A layer: its weights are sliced out (or not), matmul, tanh; the whole stack at every layer would be 5 more.
    assert 5 * 3 * size <= looped < 5 * 8 * size


def test_gpu_async_slice_and_cudnn_attention() -> None:
    program = Program("""
%sliced (p: bf16[24,512,512], i: s32[]) -> bf16[1,512,512] {
  %p = bf16[24,512,512]{2,1,0} parameter(0)
  %i = s32[] parameter(1)
  ROOT %slice = bf16[1,512,512]{2,1,0} dynamic-slice(%p, %i), dynamic_slice_sizes={1,512,512}
}

ENTRY %main (x: bf16[24,512,512], i: s32[]) -> bf16[2,16,8,64] {
  %x = bf16[24,512,512]{2,1,0} parameter(0)
  %i = s32[] parameter(1)
  %start = ((bf16[24,512,512]{2,1,0}, s32[]), bf16[1,512,512]{2,1,0}, u32[]) fusion-start(%x, %i), calls=%sliced
  %done = bf16[1,512,512]{2,1,0} fusion-done(%start)
  ROOT %out = bf16[2,16,8,64]{3,2,1,0} custom-call(%done), custom_call_target="__cudnn$fmhaSoftmax"
}
""")
    assert [op.name for op, _ in program.kernels] == ["out"]
    size = 2 * 512 * 512
    index = 4
    assert program.hbm_bytes == 2 * size + index + size + 2 * 2 * 16 * 8 * 64


def test_moves_are_large_and_in_loops() -> None:
    def turned(x):
        return jax.lax.scan(lambda x, _: (jax.lax.optimization_barrier(x.T) + 1, None), x, None, length=3)[0]

    assert len(compiled(turned, (1024, 1024)).moves) == 1
    assert not compiled(turned, (128, 128)).moves
    assert not compiled(lambda x: x.T, (1024, 1024)).moves


# A layer of the TPU compiler's, by hand: tiles, VMEM, a scan without a known count, a matmul in the guise of a
# convolution, a kernel.
TPU = """HloModule jit_f, is_scheduled=true

%fused (param_0: bf16[24,1024,3,64], param_1: s32[], param_2: bf16[32,512,1024]) -> bf16[32,512,3,64] {
  %param_0 = bf16[24,1024,3,64]{1,3,2,0:T(8,128)(2,1)} parameter(0)
  %param_1 = s32[]{:T(128)} parameter(1)
  %slice = bf16[1,1024,3,64]{1,3,2,0:T(8,128)(2,1)} dynamic-slice(%param_0, %param_1), dynamic_slice_sizes={1,1024,3,64}
  %kernel = bf16[1024,3,64,1]{0,2,1,3:T(8,128)(2,1)} bitcast(%slice)
  %param_2 = bf16[32,512,1024]{2,1,0:T(8,128)(2,1)} parameter(2)
  %turned = bf16[32,512,1024,1]{2,1,0,3:T(8,128)(2,1)} bitcast(%param_2)
  ROOT %convolution.1 = bf16[32,512,3,64]{3,1,2,0:T(8,128)(2,1)} convolution(%turned, %kernel), window={size=1x3 pad=0_0x2_2 rhs_reversal=0x1}, dim_labels=0bf1_i1o0->0b1f
}

%body (arg: (s32[], bf16[24,1024,3,64], /*index=2*/bf16[32,512,1024])) -> (s32[], bf16[24,1024,3,64], bf16[32,512,1024]) {
  %arg = (s32[]{:T(128)}, bf16[24,1024,3,64]{1,3,2,0:T(8,128)(2,1)}, /*index=2*/bf16[32,512,1024]{2,1,0:T(8,128)(2,1)}) parameter(0)
  %step = s32[]{:T(128)} get-tuple-element(%arg), index=0
  %stack = bf16[24,1024,3,64]{1,3,2,0:T(8,128)(2,1)} get-tuple-element(%arg), index=1
  %x = bf16[32,512,1024]{2,1,0:T(8,128)(2,1)} get-tuple-element(%arg), index=2
  %qkv = bf16[32,512,3,64]{3,1,2,0:T(8,128)(2,1)} fusion(%stack, %step, %x), kind=kOutput, calls=%fused
  %copied = bf16[32,512,3,64]{3,2,1,0:T(4,128)(2,1)} copy(%qkv)
  %near = bf16[32,512,3,64]{3,2,1,0:T(4,128)(2,1)S(1)} copy(%qkv)
  %flash = bf16[32,512,1024]{2,1,0:T(8,128)(2,1)} custom-call(%near), custom_call_target="tpu_custom_call", backend_config={"custom_call_config":{"body":"x","cost_estimate":{"flops":"1000","transcendentals":"1"}}}
  ROOT %out = (s32[]{:T(128)}, bf16[24,1024,3,64]{1,3,2,0:T(8,128)(2,1)}, bf16[32,512,1024]{2,1,0:T(8,128)(2,1)}) tuple(%step, %stack, %flash)
}

%condition (arg: (s32[], bf16[24,1024,3,64], bf16[32,512,1024])) -> pred[] {
  %limit = s32[]{:T(128)} constant(24)
  %arg = (s32[]{:T(128)}, bf16[24,1024,3,64]{1,3,2,0:T(8,128)(2,1)}, bf16[32,512,1024]{2,1,0:T(8,128)(2,1)}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%arg), index=0
  ROOT %lt = pred[]{:T(512)} compare(%i, %limit), direction=LT
}

ENTRY %main (x: bf16[32,512,1024], stack: bf16[24,1024,3,64]) -> bf16[32,512,1024] {
  %x.1 = bf16[32,512,1024]{2,1,0:T(8,128)(2,1)} parameter(0)
  %stack.1 = bf16[24,1024,3,64]{1,3,2,0:T(8,128)(2,1)} parameter(1)
  %zero = s32[]{:T(128)} constant(0)
  %init = (s32[]{:T(128)}, bf16[24,1024,3,64]{1,3,2,0:T(8,128)(2,1)}, bf16[32,512,1024]{2,1,0:T(8,128)(2,1)}) tuple(%zero, %stack.1, %x.1)
  %while = (s32[]{:T(128)}, bf16[24,1024,3,64]{1,3,2,0:T(8,128)(2,1)}, bf16[32,512,1024]{2,1,0:T(8,128)(2,1)}) while(%init), condition=%condition, body=%body
  ROOT %last = bf16[32,512,1024]{2,1,0:T(8,128)(2,1)} get-tuple-element(%while), index=2
}
"""  # noqa: E501


def test_tpu_program() -> None:
    program = Program(TPU)
    assert program.matmul_flops == 24 * 2 * 32 * 512 * 1024 * 3 * 64
    assert program.kernel_flops == 24 * 1000
    assert [op.name for op in program.moves] == ["copied"]
    assert program.collectives == 0
    weights, hidden = 2 * 1024 * 3 * 64, 2 * 32 * 512 * 1024
    # The minor dimension of 64 is kept as 128, and 3 as 4 where it is the next; the step number is 4 bytes.
    qkv, copied = 2 * 32 * 3 * 512 * 128, 2 * 32 * 512 * 4 * 128
    assert program.hbm_bytes == 24 * ((weights + hidden + qkv + 4) + (qkv + copied) + qkv + hidden)


@pytest.mark.parametrize(
    ("old", "new", "name"),
    [
        ("direction=LT", "direction=NE", "while"),
        ('"cost_estimate"', '"cost"', "flash"),
        ("copy(%qkv)", "conditional(%qkv)", "copied"),
    ],
    ids=["loop", "kernel", "branch"],
)
def test_unsupported_programs(old: str, new: str, name: str, refused) -> None:
    program = Program(TPU.replace(old, new))
    with refused(name, error=ValueError):
        print(program.matmul_flops, program.kernel_flops)


def test_collectives_are_counted() -> None:
    gathered = TPU.replace("copy(%qkv)", "all-gather-start(%qkv)", 1)
    assert Program(gathered).collectives == 1
