// One comparison: ratio, interval, verdict, differences, and the accuracy that the checkpoints' cards publish.
"use strict";
(function (PS) {
  const h = PS.h;
  const FIRST = ["output_tps_per_gpu", "total_tps_per_gpu", "interactivity_p50_per_s", "ttft_p50_s", "ttft_p99_s", "tpot_p50_s", "tpot_p99_s", "e2e_p50_s", "goodput_per_s", "j_per_output_token", "mean_power_w", "tps_per_watt", "usd_per_mtok", "gpu_memory_used_bytes", "kv_capacity_tokens"];

  PS.views.compare = {
    title: "FP8 vs NVFP4",
    needs: ["compare"],
    async render({ index, compare }, params) {
      if (!compare.length) return PS.empty("No run compares two arms yet.");
      const own = PS.unique(compare.map((row) => row.run_id));
      const older = own.includes(params.run) ? null : index.runs.find((each) => each.id === params.run && each.file);
      const found = older ? (await PS.pickRun(index, params)).data.comparisons || [] : [];
      const rows = [...found, ...compare];
      const runs = PS.unique(rows.map((row) => row.run_id));
      const run = runs.includes(params.run) ? params.run : runs[0];
      const ofRun = rows.filter((row) => row.run_id === run);
      const pairOf = (row) => `${row.comparison.baseline}/${row.comparison.candidate}`;
      const row = ofRun.find((each) => pairOf(each) === params.pair) || ofRun[0];
      return [
        h("h2", {}, `${row.comparison.candidate} against ${row.comparison.baseline} `, PS.emulated(row.comparison.emulated)),
        PS.controls(
          PS.select("Run", "run", runs.map((id) => [id, label(rows.find((each) => each.run_id === id))]), run),
          PS.select("Comparison", "pair", ofRun.map((each) => [pairOf(each), `${each.comparison.candidate} / ${each.comparison.baseline}`]), pairOf(row)),
          PS.checkbox("All metrics", "all", params.all === "1")),
        PS.comparison(row, index.metrics, params.all === "1"),
      ];
    },
  };

  const label = (row) => `${PS.day(row.utc_ns)} ${row.scenario}`;

  PS.comparison = function (row, metrics, isAll) {
    const { comparison } = row;
    return [
      h("p", {}, `${row.model}, ${row.scenario}, `, h("a", { href: PS.link("run", { run: row.run_id }) }, row.run_id)),
      arms(row),
      comparison.comparable ? null : h("p", { class: "banner bad", role: "note" }, h("strong", {}, "No verdict. "), comparison.reason),
      comparison.load_points.map((point) => pointTable(row, point, metrics, isAll)),
      comparison.equal_service.filter((service) => service.levels.length).map((service) => equalTable(service, comparison)),
      differences(comparison),
      accuracy(row),
    ];
  };

  function arms(row) {
    return PS.table("Arms", [
      { label: "Arm", of: (arm) => arm.name },
      { label: "Engine", of: (arm) => arm.engine },
      { label: "Precision", of: (arm) => arm.precision || PS.DASH },
      { label: "Checkpoint", of: (arm) => arm.checkpoint || PS.DASH },
      { label: "Trials", number: true, of: (arm) => String(arm.num_trials) },
      { label: "Invalid", number: true, of: (arm) => (arm.num_invalid ? h("strong", { class: "bad" }, `✗ ${arm.num_invalid} invalid: ${arm.reasons.join(", ")}`) : "0") },
    ], row.arms);
  }

  function pointTable(row, point, metrics, isAll) {
    const { comparison } = row;
    const names = [...FIRST, ...Object.keys(point.metrics).filter((name) => !FIRST.includes(name))]
      .filter((name) => point.metrics[name] && (isAll || FIRST.includes(name)));
    const rows = names.map((name) => ({ name, m: point.metrics[name], info: metrics[name] || { label: name, unit: point.metrics[name].unit } }));
    const pairs = `${point.num_pairs} of ${point.num_planned_pairs} pairs${point.label ? `, ${point.label}` : ""}`;
    return h("section", {}, point.comparable ? null : h("p", { class: "banner bad" }, `${point.load_point}: no verdict: ${point.reason}`),
      PS.table(`${point.load_point}: ${pairs}; ratio = ${comparison.candidate} / ${comparison.baseline}`, [
        { label: "Metric", of: ({ m, info }) => [m.is_primary ? "* " : "", info.label] },
        { label: comparison.baseline, number: true, of: ({ m }) => PS.value(m.baseline_median, m.unit) },
        { label: comparison.candidate, number: true, of: ({ m }) => PS.value(m.candidate_median, m.unit) },
        { label: "Ratio [95 %]", number: true, of: ({ m }) => PS.ratio(m.ratio, m.ratio_low, m.ratio_high) },
        { label: "Verdict", of: ({ m }) => (m.verdict ? PS.verdict(m) : h("span", { class: "why" }, m.direction ? m.note || "" : "")) },
      ], rows), h("p", { class: "why" }, "* primary, verdict by the Holm-adjusted interval. Medians over usable trials."));
  }

  function equalTable(service, comparison) {
    const unit = service.kind === "interactivity" ? "tok/s/user" : "share of requests within the SLO";
    return PS.table(`At equal service (${service.kind}, ${service.loop} loop): what ${comparison.candidate} delivers more`, [
      { label: unit, number: true, of: (level) => PS.number(level.level) },
      { label: comparison.baseline, number: true, of: (level) => PS.number(level.baseline) },
      { label: comparison.candidate, number: true, of: (level) => PS.number(level.candidate) },
      { label: "Ratio [95 %]", number: true, of: (level) => PS.ratio(level.ratio, level.low, level.high) },
      { label: "Note", of: (level) => level.note || "" },
    ], service.levels);
  }

  function differences(comparison) {
    if (!comparison.differences.length) return PS.empty("No difference between the arms is known.");
    return PS.table("Every known difference between the arms", [
      { label: "Kind", of: (row) => row.kind, sort: (row) => row.kind },
      { label: "What", of: (row) => row.key, sort: (row) => row.key },
      { label: comparison.baseline, of: (row) => row.baseline },
      { label: comparison.candidate, of: (row) => row.candidate },
      { label: "Why", of: (row) => row.why },
      { label: "Source", of: (row) => row.source },
    ], comparison.differences, { rowClass: (row) => (row.kind === "confound" ? "bad" : null) });
  }

  function accuracy(row) {
    if (!row.accuracy.length) return PS.empty("The model library has no published accuracy of these checkpoints.");
    const delta = (scores) => (scores[0] === null || scores[1] === null ? PS.DASH : `${scores[1] - scores[0] < 0 ? "−" : "+"}${Math.abs(scores[1] - scores[0]).toFixed(1)}`);
    return PS.table("Accuracy as published on the checkpoints' cards, percent; perfsuite measured none of it", [
      { label: "Test", of: (each) => each.test },
      { label: row.comparison.baseline, number: true, of: (each) => (each.scores[0] === null ? PS.DASH : each.scores[0].toFixed(1)) },
      { label: row.comparison.candidate, number: true, of: (each) => (each.scores[1] === null ? PS.DASH : each.scores[1].toFixed(1)) },
      { label: "Points", number: true, of: (each) => delta(each.scores) },
      { label: "Source", of: (each) => each.sources.join("; ") },
    ], row.accuracy);
  }
})(window.PS);
