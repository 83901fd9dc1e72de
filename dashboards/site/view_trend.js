// Night after night at one operating point: values, the band of noise, change points, what changed; gaps stay gaps.
"use strict";
(function (PS) {
  const h = PS.h;
  const subjectOf = (series) => (series.baseline === null ? series.arm : `${series.arm} / ${series.baseline}`);

  PS.views.trend = {
    title: "Trend",
    needs: [],
    async render({ index }, params) {
      if (!index.trends.length) return PS.empty("No history yet: it takes two runs of the same definition in the catalog.");
      const file = index.trends.find((row) => row.name === params.file) || index.trends[0];
      const metrics = Object.keys(file.metrics);
      const metric = metrics.includes(params.metric) ? params.metric : metrics[0];
      const { series: ofMetric } = await PS.load(`${file.name}-${metric}`, file.metrics[metric]);
      const subjects = PS.unique(ofMetric.map(subjectOf));
      const subject = subjects.includes(params.subject) ? params.subject : subjects[0];
      const loads = PS.unique(ofMetric.filter((series) => subjectOf(series) === subject).map((series) => series.load_point));
      const load = loads.includes(params.load) ? params.load : loads[0];
      const series = ofMetric.find((each) => subjectOf(each) === subject && each.load_point === load);
      const names = index.trends.map((row) => [row.name, `${row.scenario} (${row.num_points} runs, definition ${row.definition.slice(0, 8)})`]);
      return [
        h("h2", {}, "Trend at a fixed operating point ", PS.emulated(file.emulated)),
        PS.controls(
          PS.select("Scenario", "file", names, file.name),
          PS.select("Metric", "metric", metrics.map((name) => [name, (index.metrics[name] || { label: name }).label]), metric),
          PS.select("Arm or ratio", "subject", subjects.map((each) => [each, each]), subject),
          PS.select("Operating point", "load", loads.map((each) => [each, isFixed(each, ofMetric) ? `at ${each}, read off each run's curve` : each]), load)),
        trend(series, index.metrics[metric], subject),
        events(series),
      ];
    },
  };

  // Runs that have no value, and why: beyond their curve, or not above 0.
  const missing = (series) => [...(series.unreached || []), ...series.left_out.map((point) => ({ ...point, why: `${point.value} is not above 0` }))];

  const isFixed = (load, ofMetric) => ofMetric.some((series) => series.load_point === load && series.unreached);

  // The gaps are where no run was for more than one and a half usual steps.
  // none: runs without a value; the line stops there too.
  PS.withGaps = function (points, none) {
    const steps = points.slice(1).map((point, k) => point.utc_ns - points[k].utc_ns).sort((a, b) => a - b);
    const usual = steps.length ? steps[Math.floor(steps.length / 2)] : 0;
    const isCut = (from, to) => to - from > 1.5 * usual || none.some((row) => from < row.utc_ns && row.utc_ns < to);
    return points.flatMap((point, k) => (k && isCut(points[k - 1].utc_ns, point.utc_ns)
      ? [[(point.utc_ns + points[k - 1].utc_ns) / 2e6, null], [point.utc_ns / 1e6, point.value]]
      : [[point.utc_ns / 1e6, point.value]]));
  };

  function trend(series, metric, subject) {
    const points = series.points;
    const changes = series.history ? series.history.change_points : [];
    const rows = [
      ...points.map((point, k) => [point.utc_ns, point.value, point.low, point.high, point.num, point.status, point.run_id, noteOf(series, k)]),
      ...missing(series).map((row) => [row.utc_ns, null, null, null, null, "no value", row.run_id, row.why]),
    ].sort((a, b) => a[0] - b[0]).map(([utcNs, ...rest]) => [PS.minute(utcNs), ...rest]);
    const label = series.baseline === null ? `${metric.label} (${metric.unit})` : `${metric.label}, ratio`;
    return PS.figure({
      title: `${label}, ${subject}, ${series.unreached ? "at " : ""}${series.load_point}`,
      describe: `${label} of ${points.length} runs, ${changes.length} change points. The table below has every run.`,
      name: `trend-${series.metric}`,
      height: 460,
      isEmulated: points.some((point) => point.emulated),
      columns: ["run began (UTC)", label, "low", "high", "trials or pairs", "status", "run", "what happened"],
      rows,
      make: () => option(series, label),
      onclick: (event) => event.data && event.data.run && (location.hash = PS.link("run", { run: event.data.run })),
    });
  }

  function noteOf(series, k) {
    if (!series.history) return "";
    const { change_points: changes, is_regression: isBad, annotations } = series.history;
    return [
      ...changes.map((change, n) => (change.index === k ? `change point ${PS.percent(change.ratio)}, ${isBad[n] ? "regression" : "improvement"}` : null)),
      ...annotations.map((change) => (change.index === k ? `${change.key}: ${change.before} → ${change.after}` : null)),
      ...series.points[k].notes.map((note) => `note: ${note.text}`),
    ].filter(Boolean).join("; ");
  }

  function option(series, label) {
    const points = series.points;
    const colour = PS.colour(0);
    const marks = markers(series);
    return {
      grid: { left: 78, right: 30, top: 62, bottom: 92 },
      xAxis: PS.axis("", { type: "time", scale: true, axisLabel: { color: PS.ink(), hideOverlap: true } }),
      yAxis: PS.axis(label, { type: "value", nameGap: 58 }),
      dataZoom: [{ type: "slider", filterMode: "none", bottom: 8, textStyle: { color: PS.ink() } }, { type: "inside", filterMode: "none" }],
      legend: PS.legend(["value", "level of a segment"]),
      series: [
        {
          type: "line", name: "value", color: colour, connectNulls: false, symbol: "none", data: PS.withGaps(points, missing(series)), lineStyle: { color: colour, width: 1.5 },
          markLine: { symbol: ["none", "none"], data: marks, silent: false, lineStyle: { width: 2 }, label: { color: PS.ink(), position: "end", rotate: 0 } },
          markArea: { silent: true, data: bands(series) }, tooltip: { show: false },
        },
        {
          type: "scatter", name: "value", color: colour, symbolSize: 8,
          data: points.map((point, k) => ({
            value: [point.utc_ns / 1e6, point.value], run: point.run_id, symbol: point.status === "complete" ? "circle" : "emptyTriangle",
            words: [PS.minute(point.utc_ns), `${PS.number(point.value)}, n ${point.num}, ${point.status}`, noteOf(series, k), point.run_id].filter(Boolean).join("\n"),
          })),
          tooltip: { formatter: (each) => each.data.words },
        },
        PS.whiskers("value", colour, points.map((point) => [point.utc_ns / 1e6, point.value, null, null, point.low, point.high])),
        ...levels(series),
      ],
    };
  }

  function levels(series) {
    if (!series.history) return [];
    return series.history.segments.map((segment) => ({
      type: "line", name: "level of a segment", color: PS.colour(2), symbol: "none", silent: true, tooltip: { show: false },
      lineStyle: { color: PS.colour(2), width: 2.5, type: segment.is_baseline ? "solid" : "dotted" },
      data: [segment.start, segment.stop - 1].map((k) => [series.points[k].utc_ns / 1e6, segment.median]),
    }));
  }

  // Within the gate's limit of each segment's level.
  function bands(series) {
    if (!series.history || !series.gate || !series.gate.limit_ratio) return [];
    const limit = series.gate.limit_ratio;
    return series.history.segments.map((segment) => [
      { xAxis: series.points[segment.start].utc_ns / 1e6, yAxis: segment.median / limit, itemStyle: { color: PS.colour(2), opacity: 0.1 } },
      { xAxis: series.points[segment.stop - 1].utc_ns / 1e6, yAxis: segment.median * limit },
    ]);
  }

  function markers(series) {
    if (!series.history) return [];
    const { change_points: changes, is_regression: isBad, annotations } = series.history;
    const noted = PS.unique(annotations.map((change) => change.index));
    return [
      ...changes.map((change, n) => ({
        xAxis: series.points[change.index].utc_ns / 1e6, lineStyle: { color: isBad[n] ? PS.bad() : PS.good(), type: "solid", width: 2.5 },
        label: { formatter: `${isBad[n] ? "▼" : "▲"} ${PS.percent(change.ratio)}` },
      })),
      ...noted.map((k) => ({ xAxis: series.points[k].utc_ns / 1e6, lineStyle: { color: PS.ink(), type: "dotted", width: 1 }, label: { show: false } })),
    ];
  }

  function events(series) {
    const rows = [
      ...series.points.map((point, k) => ({ point, words: noteOf(series, k) })).filter((row) => row.words),
      ...missing(series).map((row) => ({ point: row, words: `no value: ${row.why}` })),
    ].sort((a, b) => a.point.utc_ns - b.point.utc_ns);
    const gate = series.gate ? gateWords(series.gate) : "no gate: the metric has no better side";
    return h("section", { "aria-labelledby": "events" }, h("h3", { id: "events" }, "What happened"),
      h("p", {}, gate),
      rows.length ? PS.table("Change points, changes of versions and machines, notes", [
        { label: "Run began (UTC)", of: ({ point }) => PS.minute(point.utc_ns), sort: ({ point }) => point.utc_ns },
        { label: "What", of: ({ words }) => words },
        { label: "Run", of: ({ point }) => point.run_id },
      ], rows) : PS.empty("Nothing changed."),
      series.unreached ? h("p", { class: "why" }, `Output tok/s/GPU at ${series.load_point} (median tok/s one user sees), read off each run's frontier over its load points by straight lines on log scales; nothing is extrapolated.`) : null,
      h("p", { class: "why" }, "Band: the gate's limit around the level of each segment. Solid level: a baseline; dotted: not one, being worse. Open triangles: runs that did not complete. Lines stop where nights are missing."));
  }

  function gateWords(gate) {
    const words = { too_short: "Gate: too few runs of one level to judge the newest", ok: "Gate: ok", rerun: "Gate: beyond the limit, run it again to confirm", regression: "Gate: regression, confirmed", improvement: "Gate: improvement, confirmed", not_confirmed: "Gate: beyond the limit once, not confirmed" }[gate.state] || gate.state;
    return gate.change_ratio ? `${words}: newest ${PS.percent(gate.change_ratio)} against the baseline, limit ±${((gate.limit_ratio - 1) * 100).toFixed(1)} %, n ${gate.num_history}.` : `${words} (n ${gate.num_history}).`;
  }
})(window.PS);
