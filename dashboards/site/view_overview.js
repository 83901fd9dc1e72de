// The first page: the inbox stands above; here the newest answer of each comparison, and the list of runs.
"use strict";
(function (PS) {
  const h = PS.h;

  PS.views.overview = {
    title: "Overview",
    needs: [],
    render({ index }, params) {
      return [answers(index.answers), runs(index, params)];
    },
  };

  function answers(rows) {
    if (!rows.length) return PS.empty("No run compares two arms yet.");
    return h("section", { "aria-labelledby": "answers" }, h("h2", { id: "answers" }, "Newest answers"),
      PS.table("Output tokens per second and GPU, candidate against baseline, newest run of each comparison", [
        { label: "Comparison", of: (row) => [h("a", { href: PS.link("compare", { run: row.run_id, pair: `${row.baseline}/${row.candidate}` }) }, `${row.candidate} / ${row.baseline}`), " ", PS.emulated(row.emulated)], sort: (row) => row.candidate },
        { label: "Ratio [95 %]", number: true, of: ({ metric }) => (metric ? PS.ratio(metric.ratio, metric.ratio_low, metric.ratio_high) : PS.DASH), sort: ({ metric }) => metric && metric.ratio },
        { label: "Load point", of: (row) => row.load_point || PS.DASH },
        { label: "Verdict", of: (row) => (row.metric ? PS.verdict(row.metric, row.label) : PS.verdict(null, `no verdict: ${row.reason}`)) },
        { label: "Model", of: (row) => row.model, sort: (row) => row.model },
        { label: "Day (UTC)", of: (row) => PS.day(row.utc_ns), sort: (row) => row.utc_ns },
      ], rows));
  }

  // A verdict in words with a sign before it, so that it does not rest on its colour.
  PS.verdict = function (metric, note) {
    if (!metric || !metric.verdict) return h("span", { class: "verdict none" }, note || (metric && metric.note) || PS.DASH);
    const sign = { better: "▲", worse: "▼", equivalent: "=", inconclusive: "?" }[metric.verdict] || "";
    const words = metric.is_below_margin ? `${metric.verdict}, below the margin` : metric.verdict;
    return h("span", { class: `verdict ${metric.verdict}` }, `${sign} ${words}`, note ? ` (${note})` : null);
  };

  function runs(index, params) {
    const shown = params.runs === "all" ? index.runs : index.runs.slice(-30);
    const rows = [...shown].reverse();
    const head = h("h2", { id: "runs" }, "Runs");
    if (!index.runs.length) return h("section", { "aria-labelledby": "runs" }, head, PS.empty("No runs yet: ", h("code", {}, "perfsuite run SCENARIO"), " makes one."));
    const more = shown.length < index.runs.length ? h("p", {}, h("a", { href: PS.link("overview", { runs: "all" }) }, `All ${index.runs.length} runs`)) : null;
    return h("section", { "aria-labelledby": "runs" }, head, PS.table("Runs, newest first", [
      { label: "Started (UTC)", of: (run) => PS.minute(run.utc_ns), sort: (run) => run.utc_ns },
      { label: "Scenario", of: (run) => [run.file ? h("a", { href: PS.link("run", { run: run.id }) }, run.scenario || run.id) : run.scenario || run.id, " ", PS.emulated(run.emulated)], sort: (run) => run.scenario },
      { label: "Status", of: (run) => run.status, sort: (run) => run.status },
      { label: "Trials", number: true, of: (run) => `${run.num_played ?? PS.DASH}/${run.num_trials ?? PS.DASH}` },
      { label: "Valid", number: true, of: (run) => String(run.validity.valid), sort: (run) => run.validity.valid },
      { label: "Degraded", number: true, of: (run) => String(run.validity.degraded), sort: (run) => run.validity.degraded },
      { label: "Invalid", number: true, of: (run) => String(run.validity.invalid), sort: (run) => run.validity.invalid },
      { label: "Run", of: (run) => [run.id, run.problem ? h("div", { class: "why" }, run.problem) : null] },
    ], rows), more);
  }
})(window.PS);
