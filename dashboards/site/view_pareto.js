// Throughput against what one user sees: a curve for each arm, intervals, the frontier, dominated points dimmed.
"use strict";
(function (PS) {
  const h = PS.h;
  const Y = {
    output: { label: "Output tok/s per GPU", of: (m) => m.output_tps_per_gpu },
    total: { label: "Input + output tok/s per GPU", of: (m) => m.total_tps_per_gpu },
    watt: { label: "Output tok/s per W, measured power", of: (m) => m.tps_per_watt },
    dollar: { label: "Output tokens per USD", of: (m) => inverse(m.usd_per_mtok) },
  };
  const X = {
    interactivity: { label: "Interactivity: median tok/s one user sees", of: (m) => m.interactivity_p50_per_s, isLower: false },
    ttft: { label: "TTFT p99, s", of: (m) => m.ttft_p99_s, isLower: true },
  };
  const inverse = ([value, low, high]) => [value && 1e6 / value, high && 1e6 / high, low && 1e6 / low];

  PS.views.pareto = {
    title: "Pareto",
    needs: ["pareto"],
    render({ pareto }, params) {
      if (!pareto.length) return PS.empty("No run with usable trials yet.");
      const models = PS.unique(pareto.map((curve) => curve.model)).sort();
      const model = models.includes(params.model) ? params.model : models[0];
      const ofModel = pareto.filter((curve) => curve.model === model);
      const origin = params.origin || (ofModel.some((curve) => !curve.emulated) ? "measured" : "emulated");
      const ofOrigin = ofModel.filter((curve) => origin === "both" || curve.emulated === (origin === "emulated"));
      const scenarios = PS.unique(ofOrigin.map((curve) => curve.scenario));
      const scenario = scenarios.includes(params.scenario) ? params.scenario : mostPoints(ofOrigin, scenarios);
      const curves = ofOrigin.filter((curve) => curve.scenario === scenario);
      const x = X[params.x] ? params.x : "interactivity";
      const y = Y[params.y] ? params.y : "output";
      return [
        h("h2", {}, "Throughput against interactivity"),
        PS.controls(
          PS.select("Model", "model", models.map((each) => [each, each]), model),
          PS.select("Numbers", "origin", [["measured", "measured"], ["emulated", "emulated (a model of the hardware)"], ["both", "both on one axis"]], origin),
          scenarios.length > 1 ? PS.select("Scenario", "scenario", scenarios.map((each) => [each, each]), scenario) : null,
          PS.select("Up", "y", Object.entries(Y).map(([key, axis]) => [key, axis.label]), y),
          PS.select("Across", "x", Object.entries(X).map(([key, axis]) => [key, axis.label]), x),
          PS.checkbox("Logarithmic", "log", params.log === "1")),
        origin === "both" && PS.unique(curves.map((curve) => curve.emulated)).length > 1 ? h("p", { class: "banner", role: "note" }, "Emulated and measured numbers are on one axis because you asked for it. They cannot be held against each other.") : null,
        curves.length ? chart(curves, X[x], Y[y], params.log === "1", model) : PS.empty(`No ${origin} run of ${model}.`),
        curves.length ? notes(curves) : null,
      ];
    },
  };

  function mostPoints(curves, scenarios) {
    const size = (name) => Math.max(0, ...curves.filter((curve) => curve.scenario === name).map((curve) => curve.points.length));
    return [...scenarios].sort((a, b) => size(b) - size(a))[0];
  }

  // Which points no other beats in both; of equal ones the first stays. As analysis/pareto.py.
  PS.frontier = function (points, isLower) {
    const sign = isLower ? -1 : 1;
    const order = points.filter((p) => p.x !== null && p.y !== null).sort((a, b) => sign * (b.x - a.x) || b.y - a.y);
    let best = -Infinity;
    const kept = order.filter((p) => p.y > best && ((best = p.y), true));
    return kept.reverse();
  };

  function pointsOf(curve, x, y) {
    const points = curve.points.map((point) => {
      const [px, xLow, xHigh] = x.of(point.metrics);
      const [py, yLow, yHigh] = y.of(point.metrics);
      return { curve, point, x: px, y: py, xLow, xHigh, yLow, yHigh };
    });
    const kept = new Set(PS.frontier(points, x.isLower));
    return points.map((each) => ({ ...each, isOn: kept.has(each) }));
  }

  function chart(curves, x, y, isLog, model) {
    const all = curves.map((curve) => pointsOf(curve, x, y));
    const rows = all.flat().map((p) => [p.curve.arm, p.curve.engine, p.curve.precision, p.point.load_point, p.x, p.xLow, p.xHigh, p.y, p.yLow, p.yHigh, p.isOn ? "yes" : "no", `${p.point.num_usable}/${p.point.num_trials}`, p.curve.emulated ? "emulated" : "measured", reasonOf(p, x, y)]);
    return PS.figure({
      title: `${y.label}, ${model}`,
      describe: `${y.label} against ${x.label}: ${curves.length} curves. The table below has every point.`,
      name: `pareto-${model}`,
      height: 520,
      isEmulated: curves.some((curve) => curve.emulated),
      columns: ["arm", "engine", "precision", "load point", x.label, "low", "high", y.label, "low", "high", "on its curve's frontier", "usable trials", "numbers", "why missing"],
      rows,
      make: () => option(curves, all, x, y, isLog),
      onclick: (event) => event.data && event.data.run && (location.hash = PS.link("run", { run: event.data.run })),
    });
  }

  function reasonOf(p, x, y) {
    if (p.x !== null && p.y !== null) return "";
    if (!p.point.num_usable) return p.point.reasons.join(", ") || "no usable trial";
    return Object.entries(p.point.notes).map(([name, why]) => `${name}: ${why}`).join("; ");
  }

  function option(curves, all, x, y, isLog) {
    const engines = PS.unique(curves.map((curve) => curve.engine));
    const precisions = PS.unique(curves.map((curve) => curve.precision));
    const isMixed = PS.unique(curves.map((curve) => curve.emulated)).length > 1;
    const series = [];
    all.forEach((points, k) => {
      const curve = curves[k];
      const colour = PS.colour(engines.indexOf(curve.engine));
      const symbol = PS.SHAPES[precisions.indexOf(curve.precision)];
      const shown = points.filter((p) => p.x !== null && p.y !== null);
      const name = curve.emulated && isMixed ? `${curve.arm} (emulated)` : curve.arm;
      const line = shown.filter((p) => p.isOn).sort((a, b) => a.x - b.x);
      series.push({
        type: "line", name, color: colour, symbol: "none", z: 2,
        lineStyle: { color: colour, width: 2, type: precisions.indexOf(curve.precision) % 2 ? "solid" : "dashed" },
        data: line.map((p) => [p.x, p.y]), tooltip: { show: false }, emphasis: { disabled: true },
      });
      series.push({
        type: "scatter", name, color: colour, symbol, symbolSize: 13, z: 3,
        data: shown.map((p) => ({
          value: [p.x, p.y], run: curve.run_id, words: words(p, x, y),
          itemStyle: { color: colour, opacity: p.isOn ? 1 : 0.35, borderColor: PS.ink(), borderWidth: curve.emulated ? 0 : 1 },
        })),
        tooltip: { formatter: (each) => each.data.words },
      });
      series.push(PS.whiskers(name, colour, shown.map((p) => [p.x, p.y, p.xLow, p.xHigh, p.yLow, p.yHigh])));
    });
    const over = PS.frontier(all.flat().filter((p) => p.x !== null && p.y !== null), x.isLower);
    series.push({
      type: "line", name: "frontier of all", symbol: "none", silent: true, z: 0, color: PS.ink(), data: over.map((p) => [p.x, p.y]).sort((a, b) => a[0] - b[0]),
      lineStyle: { color: PS.ink(), width: 8, opacity: 0.12 }, tooltip: { show: false },
    });
    const icons = Object.fromEntries(series.filter((each) => each.type === "scatter").map((each) => [each.name, each.symbol]));
    const names = PS.unique(series.map((each) => each.name)).map((name) => ({ name, icon: icons[name] || "roundRect" }));
    return {
      grid: { left: 78, right: 24, top: 60, bottom: 64 },
      legend: PS.legend(names, { itemWidth: 16 }),
      xAxis: PS.axis(x.label, { type: isLog ? "log" : "value", inverse: false }),
      yAxis: PS.axis(y.label, { type: isLog ? "log" : "value", nameGap: 58 }),
      dataZoom: [{ type: "inside", filterMode: "none" }, { type: "inside", orient: "vertical", filterMode: "none", zoomOnMouseWheel: "shift" }],
      series,
    };
  }

  function words(p, x, y) {
    const range = (value, low, high) => PS.number(value) + (low === null || low === undefined ? "" : ` [${PS.number(low)}, ${PS.number(high)}]`);
    return [
      `${p.curve.arm}, ${p.point.load_point}${p.curve.emulated ? ", EMULATED" : ""}`,
      `${y.label}: ${range(p.y, p.yLow, p.yHigh)}`,
      `${x.label}: ${range(p.x, p.xLow, p.xHigh)}`,
      `${p.point.num_usable} of ${p.point.num_trials} trials, ${PS.day(p.curve.utc_ns)}`,
      p.isOn ? "on its curve's frontier" : "dominated by another point of its curve",
    ].join("\n");
  }

  function notes(curves) {
    return h("p", { class: "why" },
      "Points: medians over usable trials; whiskers: 95 % t interval of the geometric mean over trials, none for fewer than two. " +
      "Lines join each arm's own frontier; dimmed points are dominated by another point of the same arm; the wide band is the frontier over all arms. " +
      "Colour: engine; shape and dashes: precision. Runs: ", PS.unique(curves.map((curve) => curve.run_id)).join(", "), ".");
  }
})(window.PS);
