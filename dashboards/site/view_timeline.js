// A run over time: load, latency, queue, cache and GPUs under one cursor, its trials shaded.
"use strict";
(function (PS) {
  const h = PS.h;
  const PANEL = 124; // pixels from one panel to the next: its legend, then its lines
  const LONGEST_STEP_S = 3; // between two samples that a line joins
  const SAMPLED = ["num_running", "num_waiting", "kv_usage_ratio"];
  const PANELS = [
    { name: "in flight", unit: "requests", keys: [["in_flight", "in flight"], ["num_running", "running (server)"], ["num_waiting", "queued (server)"]] },
    { name: "TTFT", unit: "s", keys: [["ttft_p50_s", "TTFT, median of the bin"]] },
    { name: "output", unit: "tok/s", keys: [["output_tps", "output tok/s"]] },
    { name: "KV cache", unit: "share", keys: [["kv_usage_ratio", "KV cache in use"]] },
    { name: "power", unit: "W", gpu: "power_w", sum: "power, all GPUs" },
    { name: "SM clock", unit: "MHz", gpu: "sm_clock_mhz" },
    { name: "memory", unit: "GB", gpu: "memory_used_bytes", factor: 1e-9 },
  ];

  PS.views.timeline = {
    title: "Timeline",
    needs: [],
    async render({ index }, params) {
      const { run, data, control } = await PS.pickRun(index, params);
      if (!run) return PS.empty("No run has a page of its own yet.");
      return [h("h2", {}, "Timeline ", PS.emulated(run.emulated)), PS.controls(control), h("p", {}, h("a", { href: PS.link("run", { run: run.id }) }, `Details of ${run.id}`)), PS.timeline(data, run)];
    },
  };

  // The run of the URL, else the newest with a page; its data; the control that chooses it.
  PS.pickRun = async function (index, params) {
    const runs = index.runs.filter((run) => run.file).reverse();
    const run = runs.find((each) => each.id === params.run) || runs[0];
    if (!run) return { run: null, data: null, control: null };
    const name = `run/${run.file.replace(/^data\/runs\//, "").replace(/\.js$/, "")}`;
    const data = await PS.load(name, run.file);
    return { run, data, control: PS.select("Run", "run", runs.map((each) => [each.id, `${PS.minute(each.utc_ns)} ${each.scenario}`]), run.id) };
  };

  PS.timeline = function (data, run) {
    const line = data.timeline;
    if (!line) return PS.empty("Nothing was sent in this run.");
    const panels = PANELS.map((panel) => ({ ...panel, lines: linesOf(panel, line) })).filter((panel) => panel.lines.length);
    const columns = ["seconds", ...panels.flatMap((panel) => panel.lines.map((each) => `${each.label} (${panel.unit})`))];
    const all = panels.flatMap((panel) => panel.lines);
    const rows = line.t_s.map((t, k) => [t, ...all.map((each) => each.values[k])]);
    return [PS.figure({
      title: `Run over time, bins of ${PS.number(line.bin_s)} s`,
      describe: `${panels.map((panel) => panel.name).join(", ")} over ${PS.number(line.t_s[line.t_s.length - 1])} seconds. The table below has every bin.`,
      name: `timeline-${run.id}`, height: PANEL * panels.length + 120, isEmulated: run.emulated, columns, rows,
      make: () => option(line, panels),
    }), phases(line)];
  };

  function linesOf(panel, line) {
    if (panel.keys) return panel.keys.filter(([key]) => line.series[key]).map(([key, label]) => ({ label, values: line.series[key], isSampled: SAMPLED.includes(key) }));
    const gpus = line.gpus.filter((gpu) => gpu[panel.gpu]);
    const scaled = (values) => values.map((value) => (value === null ? null : value * (panel.factor || 1)));
    const lines = gpus.map((gpu) => ({ label: `GPU ${gpu.gpu} ${panel.name}`, values: scaled(gpu[panel.gpu]), isSampled: true }));
    if (!panel.sum || !gpus.length) return lines;
    const total = line.t_s.map((_, k) => (gpus.some((gpu) => gpu[panel.gpu][k] === null) ? null : gpus.reduce((sum, gpu) => sum + gpu[panel.gpu][k], 0)));
    return [{ label: panel.sum, values: total, isSum: true, isSampled: true }, ...lines];
  }

  // Samples are rarer than bins: a line joins those that are near, and stops where none came, as between two servers.
  PS.joined = function (times, values, binS) {
    const longest = Math.max(LONGEST_STEP_S, 1.6 * binS);
    const seen = times.map((t, n) => [t, values[n]]).filter(([, value]) => value !== null);
    return seen.flatMap((point, k) => (k && point[0] - seen[k - 1][0] > longest ? [[(point[0] + seen[k - 1][0]) / 2, null], point] : [point]));
  };

  function option(line, panels) {
    const grids = panels.map((_, k) => ({ left: 84, right: 20, top: 44 + PANEL * k, height: 78 }));
    const end = line.t_s[line.t_s.length - 1] + line.bin_s / 2;
    const shade = line.phases.map((phase, k) => [
      { xAxis: phase.begin_s, itemStyle: { color: phase.validity === "invalid" ? PS.bad() : PS.colour(k % 2 ? 0 : 4), opacity: phase.validity === "invalid" ? 0.22 : 0.09 } },
      { xAxis: phase.end_s },
    ]);
    const series = panels.flatMap((panel, p) => panel.lines.map((each, k) => ({
      type: "line", name: each.label, xAxisIndex: p, yAxisIndex: p, symbol: "none", connectNulls: false,
      color: PS.colour(k), lineStyle: { color: PS.colour(k), width: each.isSum ? 2 : 1.2, type: ["solid", "dashed", "dotted"][k % 3] },
      data: each.isSampled ? PS.joined(line.t_s, each.values, line.bin_s) : line.t_s.map((t, n) => [t, each.values[n]]),
      markArea: k === 0 ? { silent: true, data: shade } : undefined,
    })));
    return {
      grid: grids,
      legend: panels.map((panel, k) => PS.legend(panel.lines.map((each) => each.label), { top: 14 + PANEL * k, left: 84, right: 20, itemWidth: 20, itemHeight: 14, symbolSize: 6, textStyle: { color: PS.ink(), fontSize: 11 } })),
      axisPointer: { link: [{ xAxisIndex: "all" }], label: { backgroundColor: PS.isDark() ? "#444" : "#666" } },
      tooltip: { trigger: "axis", confine: true, renderMode: "richText", order: "seriesAsc", textStyle: { color: PS.ink(), fontSize: 11 }, backgroundColor: PS.isDark() ? "#22272e" : "#ffffff", formatter: (items) => tip(items, line, panels) },
      xAxis: panels.map((_, k) => PS.axis(k === panels.length - 1 ? "seconds since the first request" : "", { type: "value", gridIndex: k, min: 0, max: end, axisLabel: { show: k === panels.length - 1, color: PS.ink(), showMaxLabel: false, hideOverlap: true }, splitLine: { show: false } })),
      yAxis: panels.map((panel, k) => PS.axis(`${panel.name} (${panel.unit})`, { type: "value", gridIndex: k, nameGap: 58, nameTextStyle: { color: PS.ink(), fontSize: 11 }, splitNumber: 2, scale: panel.gpu === "sm_clock_mhz" })),
      dataZoom: [{ type: "inside", xAxisIndex: "all", filterMode: "none" }, { type: "slider", xAxisIndex: "all", filterMode: "none", bottom: 6, textStyle: { color: PS.ink() } }],
      series,
    };
  }

  function tip(items, line, panels) {
    if (!items.length) return "";
    const t = items[0].value[0];
    const phase = line.phases.find((each) => each.begin_s <= t && t <= each.end_s);
    const bin = Math.min(line.t_s.length - 1, Math.max(0, Math.round(t / line.bin_s - 0.5)));
    const words = panels.flatMap((panel) => panel.lines.filter((each) => !panel.gpu || each.isSum || panel.lines.length < 3).slice(0, 3)
      .map((each) => `${each.label}: ${PS.number(each.values[bin])} ${panel.unit}`));
    return [`${PS.number(t)} s${phase ? `: trial ${phase.trial}, ${phase.arm}, ${phase.load_point}` : ""}`, ...words].join("\n");
  }

  function phases(line) {
    return PS.table("Trials in the order they were played; shaded above", [
      { label: "Trial", number: true, of: (phase) => String(phase.trial) },
      { label: "Arm", of: (phase) => phase.arm },
      { label: "Load point", of: (phase) => phase.load_point },
      { label: "From", number: true, of: (phase) => `${PS.number(phase.begin_s)} s` },
      { label: "To", number: true, of: (phase) => `${PS.number(phase.end_s)} s` },
      { label: "Steady window", of: (phase) => (phase.window_s ? `${PS.number(phase.window_s[0])} to ${PS.number(phase.window_s[1])} s` : PS.DASH) },
      { label: "Validity", of: (phase) => PS.validity(phase.validity) },
    ], line.phases);
  }

  PS.validity = (word) => h("span", { class: `validity ${word}` }, `${{ valid: "✓", degraded: "!", invalid: "✗" }[word] || ""} ${word}`);
})(window.PS);
