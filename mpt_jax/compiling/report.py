"""The report of ``mpt-jax compile`` as text."""

from typing import Any

GIB, GIGA = 2**30, 1e9
MEMORY = ("argument", "temp", "output", "alias", "generated_code", "live")


def render(report: dict[str, Any]) -> str:
    """Text of a report of compiling.command."""
    mesh = " × ".join(f"{axis} {size}" for axis, size in report["mesh"].items())
    lengths = ", ".join(f"{name} {value}" for name, value in report["lengths"].items())
    lines = [
        f"{report['stage']} stage, {report['backbone']} ({report['parameters'] / 1e6:,.0f} M parameters, {report['dtype']}), "
        f"{report['topology']}: {report['devices']} devices as {mesh}, remat {report['remat']}, "
        f"attention {report['attention']}",
        f"{report['tasks']} tasks; {report['examples']} examples an update in micro-batches of {report['micro_batch']}; {lengths}",
        "Numbers are those of one device.",
        "",
    ]
    for part in ("train", "decode"):
        if part in report:
            lines += _part(part, report[part])
    return "\n".join(lines + _verdict(report)) + "\n"


def _part(name: str, part: dict[str, Any]) -> list[str]:
    lines = [f"{name}: memory, GiB".ljust(26) + "".join(kind.replace("_", " ").rjust(16) for kind in MEMORY)]
    for program, values in part["programs"].items():
        lines.append(f"  {program}".ljust(26) + "".join(f"{values['memory'][kind] / GIB:16.3f}" for kind in MEMORY))
    for program, values in part["programs"].items():
        time = values["time"]
        by = ", ".join(f"{what} {1e3 * seconds:.2f}" for what, seconds in time["by"].items()) if time else ""
        bound = f"; at least {1e3 * time['seconds']:.2f} ms by {time['bound']} ({by})" if time else ""
        lines.append(f"  {program}: {values['flops'] / GIGA:,.1f} GFLOP, {values['bytes'] / GIGA:,.2f} GB accessed{bound}")
        for kind, row in sorted(values["collectives"].items()):
            sizes = f"{row['bytes'] / 1e6:,.2f} MB, largest {row['largest'] / 1e6:,.2f} MB, sent {row['sent'] / 1e6:,.2f} MB"
            lines.append(f"    {kind}: {row['count']}, {sizes}")
    if "need" in part:
        lines.append(_need(part["need"]))
    if "products_with_the_shape_of_a_weight" in part:
        lines += _weights(part)
    if "seconds" in part:
        lines.append(f"  {_speed(name, part)}")
    if "measured" in part:
        lines.append(f"  {_measured(part['measured'])}")
    return [*lines, ""]


def _need(need: dict[str, Any]) -> str:
    parts = " + ".join(f"{name} {value / GIGA:,.1f}" for name, value in need["flops"].items() if value)
    total = sum(need["flops"].values())
    return f"  matrix products need {total / GIGA:,.1f} GFLOP ({parts}); the program has {need['ratio']:.3f} times that"


def _weights(part: dict[str, Any]) -> list[str]:
    """What a step does to weights that stay as they are."""
    more = f", which would add {part['need']['weight_gradients_would_add'] / GIGA:,.1f} GFLOP" if "need" in part else ""
    return [
        f"  products with the shape of a weight, as weight gradients have{more}: {part['products_with_the_shape_of_a_weight']}",
        f"  weights gathered whole: {100 * part['gathered_share_of_backbone']:.1f} % of the backbone's elements",
    ]


def _speed(name: str, part: dict[str, Any]) -> str:
    text = f"at best {part['examples_per_second']:,.0f} examples/s of all devices"
    if name == "decode":
        return f"{text}: {part['rows']} rows in {1e3 * part['seconds']:,.1f} ms, {1e3 * part['seconds_per_token']:.2f} ms per token"
    share = "" if part["share_of_peak"] is None else f", {100 * part['share_of_peak']:.0f} % of the peak in products that are needed"
    return f"{text}: an update of {part['micro_batches']} micro-batches in {1e3 * part['seconds']:,.1f} ms{share}"


def _measured(measured: dict[str, Any]) -> str:
    share = f", {100 * measured['share_of_peak']:.1f} % of the peak" if "share_of_peak" in measured else ""
    memory = f", {measured['peak_bytes'] / GIB:.2f} GiB in use at most" if measured["peak_bytes"] else ""
    times = f"{1e3 * measured['seconds']:,.1f} ms ({1e3 * measured['fastest']:,.1f} to {1e3 * measured['slowest']:,.1f})"
    return f"measured: {measured['examples_per_second']:,.1f} examples/s, {times} an update, {measured['updates']} of them{share}{memory}"


def _verdict(report: dict[str, Any]) -> list[str]:
    hbm = report["hbm_bytes"]
    if report["fits"]:
        of = f" of {hbm / GIB:g} GiB" if hbm else ""
        return [f"fits: {report['live_bytes'] / GIB:.2f}{of} live at most"]
    needed = report.get("needed_bytes") or report.get("live_bytes")
    size = f" ({needed / GIB:.2f} GiB)" if needed else ""
    lines = [f"DOES NOT FIT in {hbm / GIB:g} GiB{size}" + (f": {report['why']}" if "why" in report else "")]
    other = report["would_fit"]
    if isinstance(other, str):
        lines.append(f"what would: {other}")
    elif other:
        lines.append(f"what would: {other['settings']} ({other['live_bytes'] / GIB:.2f} of {other['of_gib']:g} GiB live)")
    else:
        lines.append("no arrangement of these devices was found that would; lower DataSettings.micro_batch_size or take more devices")
    return lines
