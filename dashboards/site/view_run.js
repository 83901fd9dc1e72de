// One run in full: validity with its reasons, metrics, distributions, errors, slowest requests, scenario, environment.
"use strict";
(function (PS) {
  const h = PS.h;

  PS.views.run = {
    title: "Run",
    needs: [],
    async render({ index }, params) {
      const { run, data, control } = await PS.pickRun(index, params);
      if (!run) return PS.empty("No run has a page of its own yet.");
      if (data.problem) return [PS.controls(control), h("p", { class: "banner bad" }, data.problem)];
      const metric = params.metric || "output_tps_per_gpu";
      const name = params.dist || "TTFT";
      const points = PS.unique(data.distributions.map((part) => part.load_point));
      const point = points.includes(params.load) || params.load === "all" ? params.load : data.distributions.length > 3 * 8 ? points[points.length - 1] : "all";
      return [
        h("h2", {}, `${run.scenario} `, PS.emulated(run.emulated)),
        PS.controls(control,
          PS.select("Metric", "metric", Object.entries(index.metrics).map(([key, each]) => [key, each.label]), metric),
          PS.select("Distribution", "dist", ["TTFT", "TPOT", "E2E"].map((each) => [each, each]), name),
          points.length > 1 ? PS.select("of", "load", [["all", "every load point"], ...points.map((each) => [each, each])], point) : null),
        h("p", {}, h("a", { href: PS.link("timeline", { run: run.id }) }, "Timeline"), " · ", run.id),
        findings(data), notes(data), trials(data, index.metrics, metric), reasons(data), PS.kernelProfile(data.profile, run), distribution(data, run, name, point), outcomes(data), slowest(data),
        environment(data), documents(data),
      ];
    },
  };

  function findings(data) {
    if (!data.findings.length) return PS.empty("Nothing to doubt was found.");
    return PS.table("Findings", [
      { label: "Severity", of: (row) => row.severity, sort: (row) => row.severity },
      { label: "Finding", of: (row) => row.text },
      { label: "Cure", of: (row) => row.cure },
      { label: "Code", of: (row) => row.code },
    ], data.findings, { rowClass: (row) => (row.severity === "critical" ? "bad" : null) });
  }

  function notes(data) {
    return data.annotations.length ? h("ul", {}, data.annotations.map((note) => h("li", {}, `${PS.minute(note.utc_ns)}: ${note.text}${note.is_accepted ? " (accepted)" : note.is_explained ? " (explained)" : ""}`))) : null;
  }

  function trials(data, metrics, name) {
    const info = metrics[name] || { label: name, unit: "" };
    return PS.table(`Trials, ${info.label}`, [
      { label: "Trial", number: true, of: (trial) => String(trial.trial), sort: (trial) => trial.trial },
      { label: "Arm", of: (trial) => trial.arm, sort: (trial) => trial.arm },
      { label: "Load point", of: (trial) => trial.load_point, sort: (trial) => trial.load_point },
      { label: "Pair", number: true, of: (trial) => String(trial.pair) },
      { label: info.unit ? `${info.label} (${info.unit})` : info.label, number: true, of: (trial) => metricCell(trial, name, info), sort: (trial) => trial.metrics[name] },
      { label: "ok", number: true, of: (trial) => String(trial.num_ok), sort: (trial) => trial.num_ok },
      { label: "In flight", number: true, of: (trial) => PS.number(trial.mean_in_flight) },
      { label: "Window", number: true, of: (trial) => PS.duration(trial.window_s) },
      { label: "Validity", of: (trial) => PS.validity(trial.validity), sort: (trial) => trial.validity },
    ], data.trials, { rowClass: (trial) => (trial.validity === "invalid" ? "bad" : null) });
  }

  // The exact number is in data-value, the shown one is rounded.
  function metricCell(trial, name, info) {
    const value = trial.metrics[name];
    if (value === null || value === undefined) return h("span", { class: "why" }, trial.notes[name] || PS.DASH);
    return h("span", { "data-value": String(value), "data-trial": String(trial.trial) }, PS.value(value, info.unit));
  }

  function reasons(data) {
    const rows = data.trials.flatMap((trial) => trial.reasons.map((reason) => ({ trial, reason })));
    if (!rows.length) return PS.empty("Every trial is valid, without a reservation.");
    return PS.table("Why trials are degraded or invalid", [
      { label: "Trial", number: true, of: ({ trial }) => String(trial.trial) },
      { label: "Arm", of: ({ trial }) => trial.arm },
      { label: "Severity", of: ({ reason }) => PS.validity(reason.severity) },
      { label: "Reason", of: ({ reason }) => reason.code },
      { label: "Detail", of: ({ reason }) => reason.detail },
    ], rows);
  }

  function distribution(data, run, name, point) {
    const parts = data.distributions.filter((part) => part.name === name && (point === "all" || part.load_point === point));
    if (!parts.length) return PS.empty(`No request has a ${name}.`);
    const shares = parts[0].values.map((_, k) => k / (parts[0].values.length - 1));
    return PS.figure({
      title: `${name}: share of requests within a time${point === "all" ? "" : `, ${point}`}`,
      describe: `Cumulative distribution of ${name} for ${parts.length} arms and load points. The table below has the quantiles.`,
      name: `distribution-${name}-${run.id}`, isEmulated: run.emulated,
      columns: ["arm", "load point", "requests", ...shares.map((share) => `p${Math.round(share * 100)} (s)`)],
      rows: parts.map((part) => [part.arm, part.load_point, part.num, ...part.values]),
      make: () => ({
        grid: { left: 78, right: 24, top: 60, bottom: 64 },
        legend: PS.legend(parts.map((part) => `${part.arm}, ${part.load_point}`)),
        xAxis: PS.axis(`${name}, s`, { type: "value" }),
        yAxis: PS.axis("share of requests", { type: "value", nameGap: 50, min: 0, max: 1 }),
        series: parts.map((part, k) => ({
          type: "line", name: `${part.arm}, ${part.load_point}`, color: PS.colour(k), symbol: PS.SHAPES[k % PS.SHAPES.length], symbolSize: (value, each) => (each.dataIndex % 10 === k % 10 ? 8 : 0), showSymbol: true,
          lineStyle: { type: ["solid", "dashed", "dotted"][Math.floor(k / 8) % 3], width: 1.6 }, data: part.values.map((value, n) => [value, shares[n]]),
          tooltip: { formatter: (each) => `${part.arm}, ${part.load_point}\np${Math.round(each.value[1] * 100)}: ${PS.duration(each.value[0])}` },
        })),
      }),
    });
  }

  function outcomes(data) {
    return PS.table("Measured requests by outcome", [
      { label: "Arm", of: (row) => row.arm },
      { label: "Load point", of: (row) => row.load_point },
      { label: "Outcome", of: (row) => row.outcome, sort: (row) => row.outcome },
      { label: "Requests", number: true, of: (row) => String(row.num), sort: (row) => row.num },
    ], data.outcomes, { rowClass: (row) => (row.outcome === "ok" ? null : "bad") });
  }

  function slowest(data) {
    if (!data.slowest.length) return PS.empty("No request was answered.");
    return PS.table("Slowest answered requests", [
      { label: "Trial", number: true, of: (row) => String(row.trial) },
      { label: "Arm", of: (row) => row.arm },
      { label: "Request", number: true, of: (row) => String(row.index) },
      { label: "E2E", number: true, of: (row) => PS.duration(row.e2e_s), sort: (row) => row.e2e_s },
      { label: "TTFT", number: true, of: (row) => PS.duration(row.ttft_s), sort: (row) => row.ttft_s },
      { label: "TPOT", number: true, of: (row) => PS.duration(row.tpot_s), sort: (row) => row.tpot_s },
      { label: "Tokens in, out", number: true, of: (row) => `${PS.count(row.n_in)}, ${PS.count(row.n_out)}` },
    ], data.slowest);
  }

  function environment(data) {
    const { run } = data;
    const servers = Object.values(data.servers);
    return h("section", {}, h("h3", {}, "Environment"), PS.definitions([
      ["perfsuite", run.perfsuite], ["status", run.status], ["started (UTC)", PS.minute(run.created && run.created.utc_ns)],
      ["ended (UTC)", PS.minute(run.ended && run.ended.utc_ns)], ["seed", String(run.seed ?? PS.DASH)], ["plan", (run.plan && run.plan.digest) || PS.DASH],
      ...Object.entries(run.host || {}).filter(([, value]) => value !== null).map(([key, value]) => [`host ${key}`, String(value)]),
    ]), PS.table("Servers, a row for each start", [
      { label: "Block", number: true, of: (server) => String(server.block) },
      { label: "Engine", of: (server) => `${server.engine} ${server.version || ""}` },
      { label: "Model", of: (server) => server.served_model || PS.DASH },
      { label: "Quantization", of: (server) => server.quantization || PS.DASH },
      { label: "KV dtype", of: (server) => server.kv_cache_dtype || PS.DASH },
      { label: "KV tokens", number: true, of: (server) => PS.number(server.kv_capacity_tokens) },
      { label: "Weights", number: true, of: (server) => PS.bytes(server.weights_bytes) },
      { label: "GPU", of: (server) => server.gpu_name || PS.DASH },
    ], servers));
  }

  function documents(data) {
    const page = (title, value) => h("details", {}, h("summary", {}, title), h("pre", { tabindex: 0 }, JSON.stringify(value, null, 1)));
    return h("section", {}, h("h3", {}, "Documents"), page("Resolved scenario", data.scenario), page("Servers' settings", data.servers), page("Run", data.run));
  }
})(window.PS);
