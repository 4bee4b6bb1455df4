"""What a device gets done: tokens a second, the share of its peak, the memory that a step needs, and the largest batch that fits.

- FLOPs: torch's FlopCounterMode counts the products of matrices (2 m n k) and attention of a step as it runs, forward and
  backward. So LoRA and frozen weights, whose gradient is not computed, count less than full training. Prompt tokens that are read
  twice count twice. Attention counts whole matrices, also where a mask hides a half. Its backward pass counts the scores that are
  computed again.
- Share of the peak: FLOPs a second, divided by the peak of the card for dense products in bfloat16, from its maker's data sheet.
  The option `--peak-tflops` names the peak of a card that `PEAKS` does not have. It says nothing on a CPU, unless it is given.
- Memory: the peak of a step with the weights and the optimizer's state. On CUDA it is what torch has allocated. On a CPU it is
  the resident memory of the process, with the libraries.
- Largest batch: doubled until a step runs out of memory (on a CPU: until its peak exceeds `--memory-limit`), then bisected.
"""

import gc
import re
import statistics

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from benchmarks.harness import at_least, in_turns, peak, start_peak, synchronize

PEAKS = {  # part of the name of a card -> TFLOP/s of dense products in bfloat16 with sums in float32
    "B200": 2250, "GH200": 989, "H200": 989, "H200 NVL": 835, "H100 PCIe": 756, "H100 NVL": 835, "H100": 989, "A100": 312, "A40": 150, "A30": 165,
    "A10": 125, "L40S": 362, "L40": 181, "L4": 121, "RTX 4090": 165,
}
GIB = 2**30
ATEN = torch.ops.aten
ON_CPU = {  # the attention of a CPU, which FlopCounterMode does not know
    ATEN._scaled_dot_product_flash_attention_for_cpu: lambda query, key, value, *_, **__: sdpa_flop_count(query, key, value),
    ATEN._scaled_dot_product_flash_attention_for_cpu_backward:
        lambda gradient, query, key, value, *_, **__: sdpa_backward_flop_count(gradient, query, key, value),
}


def add_throughput(command, rows="rows in a step"):
    """Add the options `--peak-tflops`, `--largest-batch` and `--memory-limit`.

    Args:
        rows: what a batch has so many of.
    """
    command.add_argument("--peak-tflops", type=float, help="peak of the device in bfloat16 (default: known for some cards)")
    command.add_argument("--largest-batch", type=at_least(0), default=0, metavar="MOST",
                         help=f"also find the largest number of {rows} that fits, at most so many (default: 0, not searched)")
    command.add_argument("--memory-limit", type=float, metavar="GIB",
                         help="for --largest-batch: memory that a step may take (default: that of the GPU; a CPU needs this)")


def check_throughput(command, given):
    """End the program with an error if the options do not fit each other."""
    if given.largest_batch and given.device == "cpu" and not given.memory_limit:
        command.error("argument --largest-batch: found --device=cpu, which runs out of memory for the whole machine; expected "
                      "--memory-limit=GIB beside it")
    if given.memory_limit and given.device == "cuda":
        whole = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, given.memory_limit * GIB / whole))


def peak_tflops(given):
    """TFLOP/s that the device can reach in bfloat16; None if that is not known."""
    if given.peak_tflops or given.device != "cuda":
        return given.peak_tflops
    return known_peak(torch.cuda.get_device_name())


def known_peak(name):
    """The peak of a card by its name, such as `NVIDIA H100 80GB HBM3`; None if it is not known, or if it is a slice of a card."""
    if "MIG" in name:
        return None
    for part in sorted(PEAKS, key=len, reverse=True):
        if re.search(rf"(?<![A-Za-z0-9]){re.escape(part)}(?![A-Za-z0-9])", name):
            return PEAKS[part]
    return None


def flops_of(step):
    """FLOPs of a call, without those of compiled code, which cannot be counted."""
    with FlopCounterMode(display=False, custom_mapping=ON_CPU) as counter:
        step()
    return counter.get_total_flops()


def rates(step, given, rows, tokens=None, flops_a_row=None):
    """Figures of a step.

    Args:
        step: function without arguments.
        given: options `repeats`, `device` and `peak_tflops`.
        rows: in the batch of the step.
        tokens: tokens of a row; None if the number is not fixed.
        flops_a_row: FLOPs of a row, for a step whose FLOPs cannot be counted; None: they are counted.

    Returns:
        dict: `rows`, `seconds` (a list), `rows_a_second`, `tokens_a_second`, `flops`, `tflops_a_second`, `peak_tflops`,
        `share_of_peak` and `peak_bytes`. None for what is not known.
    """
    step()  # so that what torch sets up once is not counted
    gc.collect()
    start_peak(given.device)
    step()
    synchronize(given.device)
    most, best = peak(given.device), peak_tflops(given)
    flops = flops_of(step) if flops_a_row is None else flops_a_row * rows
    seconds = in_turns({"step": step}, given.repeats, given.device)["step"]
    a_second = rows / statistics.median(seconds)
    tflops = flops * a_second / rows / 1e12
    return {
        "rows": rows, "seconds": seconds, "rows_a_second": a_second, "tokens_a_second": tokens and tokens * a_second,
        "flops": flops, "tflops_a_second": tflops, "peak_tflops": best, "share_of_peak": best and tflops / best, "peak_bytes": most,
    }


def largest(fits, start, most):
    """The largest number for which a function is true, found by doubling and bisecting, to one part in sixteen.

    Args:
        fits: function of an int; true up to some number, false from there on.
        start: first number that is tried.
        most: no larger number is tried.

    Returns:
        int, 0 if 1 does not fit.
    """
    low, high, tried = 0, most + 1, min(start, most)
    while high - low > max(1, low // 16):
        if fits(tried):
            low = tried
        else:
            high = tried
        tried = 2 * low if low and 2 * low < high and high == most + 1 else min((low + high) // 2, most)
        tried = max(tried, 1)
    return low


def fits(step_of, given):
    """A function: whether a step with so many rows fits into the memory.

    Args:
        step_of: function of a number of rows -> function without arguments that makes a step.
        given: options `device` and `memory_limit`.
    """
    def try_(rows):
        gc.collect()
        if given.device == "cuda":
            torch.cuda.empty_cache()
        start_peak(given.device)
        try:
            step_of(rows)()
            synchronize(given.device)
        except torch.OutOfMemoryError:
            return False
        return given.device == "cuda" or peak(given.device) <= given.memory_limit * GIB

    return try_


def measure(step_of, given, rows, tokens=None, flops_a_row=None):
    """Figures at a number of rows, and at the largest that fits if `--largest-batch` asks for it.

    Args:
        step_of, given: as for :func:`fits`.
        rows: of the first figures.
        tokens, flops_a_row: of a row, see :func:`rates`.

    Returns:
        dict: the fields of :func:`rates`; `largest_batch` (None if it was not searched); and `at_largest`, these fields again for that
        batch (None if it is not another one).
    """
    found = {**rates(step_of(rows), given, rows, tokens, flops_a_row), "largest_batch": None, "at_largest": None}
    if given.largest_batch:
        found["largest_batch"] = most = largest(fits(step_of, given), rows, given.largest_batch)
        gc.collect()
        if given.device == "cuda":
            torch.cuda.empty_cache()
        if most and most != rows:
            found["at_largest"] = rates(step_of(most), given, most, tokens, flops_a_row)
    return found


def as_text(found, unit="rows"):
    """Figures of :func:`measure` as lines."""
    lines = []
    for one in (found, found["at_largest"]):
        if one is None:
            continue
        tokens = f", {one['tokens_a_second']:,.0f} tokens a second" if one["tokens_a_second"] else ""
        share = f", {one['share_of_peak']:.1%} of the peak of {one['peak_tflops']:g}" if one["share_of_peak"] else ""
        lines.append(f"{one['rows']} {unit}: {one['rows_a_second']:,.1f} {unit} a second{tokens}, "
                     f"{one['tflops_a_second']:.3g} TFLOP/s{share}, {one['peak_bytes'] / GIB:.2f} GiB")
    if found["largest_batch"] is not None:
        lines.append(f"The largest batch that fits: {found['largest_batch']} {unit}.")
    return "\n".join(lines)
