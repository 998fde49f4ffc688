// Draws the last hours' work from the server's JSON, anew each minute. The table beside it has the same numbers, and is
// all there is without scripts.
"use strict";

{
  const MINUTE = 60_000;
  const HOUR_SECONDS = 3600;
  const figure = document.getElementById("throughput-chart");
  const plot = figure.querySelector(".plot");
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const colour = (name) => getComputedStyle(figure).getPropertyValue(name).trim();
  const size = () => ({ width: plot.clientWidth, height: 240 });
  const written = (bytes) => {
    let value = bytes, unit = 0;
    for (; value >= 1000 && unit < 5; unit += 1) value /= 1000;
    return `${Number(value.toPrecision(3))} ${["B", "kB", "MB", "GB", "TB", "PB"][unit]}`;
  };
  const axis = (options) => ({
    stroke: () => colour("--pico-muted-color"),
    grid: { stroke: () => colour("--pico-muted-border-color"), width: 1 },
    ticks: { show: false },
    ...options,
  });
  const bytes = (name) => ({
    scale: "bytes",
    stroke: () => colour(name),
    width: 1.5,
    points: { show: true, size: 5, fill: () => colour(name) },
  });
  const bars = (name, align) => ({
    scale: "count",
    stroke: () => colour(name),
    fill: () => colour(name),
    width: 0,
    points: { show: false },
    paths: uPlot.paths.bars({ size: [0.4, 24], align }),
  });
  const options = () => ({
    ...size(),
    legend: { show: false },
    cursor: { show: false },
    tzDate: (seconds) => uPlot.tzDate(new Date(seconds * 1000), "Etc/UTC"),
    scales: {
      x: { range: (_, first, last) => [first - HOUR_SECONDS / 2, last + HOUR_SECONDS / 2] },
      count: { range: (_, __, most) => [0, Math.max(4, most)] },
      bytes: { range: (_, __, most) => [0, Math.max(1000, most * 1.1)] },
    },
    series: [{}, bars("--gf-busy", -1), bars("--gf-bad", 1), bytes("--gf-good"), bytes("--gf-wait")],
    axes: [
      axis({ values: [[3600, "{HH}:00", null, null, null, null, null, null, 1]], space: 55 }),
      axis({ scale: "count", incrs: [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000], size: 40 }),
      axis({ scale: "bytes", side: 1, grid: { show: false }, size: 75, values: (_, ticks) => ticks.map(written) }),
    ],
  });
  let chart = null;

  const draw = (hours) => {
    const column = (name) => hours.map((hour) => hour[name]);
    const columns = [
      hours.map((hour) => Date.parse(hour.begins_at) / 1000 + HOUR_SECONDS / 2),
      ...["merges", "failures", "received_bytes", "published_bytes"].map(column),
    ];
    figure.hidden = false;
    if (chart) chart.setData(columns);
    else chart = new uPlot(options(), columns, plot);
  };
  const refresh = async () => {
    const answer = await fetch(figure.dataset.source, { redirect: "error" }).catch(() => null);
    if (answer?.ok) draw((await answer.json()).hours);
  };

  new ResizeObserver(() => chart?.setSize(size())).observe(figure);
  dark.addEventListener("change", () => chart?.redraw(false, true));
  setInterval(refresh, MINUTE);
  refresh();
}
