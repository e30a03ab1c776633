// The glue between the page and its data: time line, threshold, player, table and review. No name is ever parsed as HTML.
"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const all = (query, from = document) => [...from.querySelectorAll(query)];
  const byId = (id) => document.getElementById(id);
  const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const clamp = (value, low, high) => Math.min(Math.max(value, low), high);
  document.documentElement.classList.add("runs");

  // Time line -------------------------------------------------------------------------------------------------------
  const STEPS_S = [0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 10800, 21600, 43200, 86400];
  const LOWEST_SPAN_S = 1;
  let threshold = data.threshold, playhead = null, chart = null, whole = null;

  const twoDigits = (value) => String(value).padStart(2, "0");
  function timeText(at, step) {
    const date = new Date(((data.clock ?? 0) + at) * 1000);
    if (data.clock !== null && step >= 3600 && date.getUTCHours() === 0) return date.toISOString().slice(5, 10);
    const hours = data.clock === null ? Math.floor(at / 3600) : date.getUTCHours();
    const seconds = step < 1 ? (date.getUTCSeconds() + date.getUTCMilliseconds() / 1000).toFixed(1).padStart(4, "0")
      : twoDigits(date.getUTCSeconds());
    return `${twoDigits(hours)}:${twoDigits(date.getUTCMinutes())}` + (step < 60 ? `:${seconds}` : "");
  }

  function draw(u) {
    const { ctx, bbox } = u, px = (at) => u.valToPos(at, "x", true), width = devicePixelRatio;
    ctx.save();
    ctx.beginPath();
    ctx.rect(bbox.left, bbox.top, bbox.width, bbox.height);
    ctx.clip();
    const bar = (from, to, top, height, color, alpha) => {
      ctx.fillStyle = color;
      ctx.globalAlpha = alpha;
      ctx.fillRect(px(from), top, Math.max(px(to) - px(from), 2 * width), height);
      ctx.globalAlpha = 1;
    };
    for (const event of data.events) bar(event.from, event.to, bbox.top, bbox.height, css("--event"), event.score > threshold ? 0.35 : 0.1);
    for (const [from, to] of data.states) bar(from, to, bbox.top, 6 * width, css("--violet"), 1);
    for (const [from, to] of data.unheard) bar(from, to, bbox.top + bbox.height - 6 * width, 6 * width, css("--orange"), 1);
    Object.assign(ctx, { font: `${11 * width}px sans-serif`, textAlign: "left" });
    for (const [place, at] of data.changes.entries()) {
      bar(at, at, bbox.top, bbox.height, css("--blue"), 1);
      ctx.fillText(place + 1, px(at) + 4 * width, bbox.top + 11 * width);
    }
    if (threshold !== null) {
      const y = u.valToPos(threshold, "y", true);
      ctx.strokeStyle = css("--ink");
      ctx.lineWidth = width;
      ctx.setLineDash([6 * width, 4 * width]);
      ctx.beginPath();
      ctx.moveTo(bbox.left, y);
      ctx.lineTo(bbox.left + bbox.width, y);
      ctx.stroke();
    }
    if (playhead !== null) bar(playhead, playhead, bbox.top, bbox.height, css("--event"), 1);
    ctx.restore();
  }

  function makeChart() {
    const [times, scores] = data.clips, axis = { stroke: () => css("--muted"), grid: { stroke: () => css("--grid"), width: 1 }, ticks: { stroke: () => css("--grid") } };
    const drawn = scores.filter((score) => score !== null);
    const low = Math.min(...drawnEnds(drawn), threshold ?? Infinity), high = Math.max(...drawnEnds(drawn), threshold ?? -Infinity);
    const room = 0.06 * (high - low) || 1;
    const ends = [...data.events.map((event) => event.to), ...data.unheard.map((span) => span[1]), times.at(-1)];
    const starts = [...data.unheard.map((span) => span[0]), times[0]];
    whole = [drawnEnds(starts)[0], Math.max(drawnEnds(ends)[1], drawnEnds(starts)[0] + LOWEST_SPAN_S)];
    chart = new uPlot({
      width: byId("chart").clientWidth, height: 260, legend: { show: false }, padding: [8, 32, 0, 0],  // half of a time
      cursor: { y: false, drag: { x: true, y: false, setScale: false } },
      scales: { x: { time: false, range: (u, from, to) => (from === null ? whole : [from, to]) }, y: { range: [low - room, high + room] } },
      axes: [
        { ...axis, incrs: STEPS_S, space: 70, values: (u, ticks, axisNumber, space, step) => ticks.map((tick) => timeText(tick, step)) },
        { ...axis, size: 56, label: "anomaly score", labelSize: 18 },
      ],
      series: [{}, { stroke: () => css("--muted"), width: 1, points: { show: false }, paths: uPlot.paths.stepped({ align: 1 }) }],
      hooks: {
        draw: [draw],
        setSelect: [(u) => {
          if (u.select.width > 3) look(u.posToVal(u.select.left, "x"), u.posToVal(u.select.left + u.select.width, "x"));
          u.setSelect({ left: 0, width: 0 }, false);
        }],
      },
    }, data.clips, byId("chart"));
    chart.over.addEventListener("dblclick", () => look(...whole));
    chart.over.addEventListener("click", (click) => {
      const at = chart.posToVal(click.offsetX, "x"), slack = (chart.scales.x.max - chart.scales.x.min) / 300;
      const hit = data.events.find((event) => event.from - slack <= at && at <= event.to + slack);
      if (hit) go(hit.id);
    });
    chart.over.addEventListener("wheel", (wheel) => {
      wheel.preventDefault();
      const { min, max } = chart.scales.x, turn = wheel.deltaY || wheel.deltaX;
      if (wheel.shiftKey) return move(Math.sign(turn) * 0.1);
      zoom(turn > 0 ? 1.25 : 0.8, chart.posToVal(wheel.offsetX, "x"));
    }, { passive: false });
    new ResizeObserver(() => chart.setSize({ width: byId("chart").clientWidth, height: 260 })).observe(byId("chart"));
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => chart.redraw());
    look(...whole);
  }

  function drawnEnds(values) {  // Math.min(...values) has a limit of arguments
    return values.reduce(([low, high], value) => [Math.min(low, value), Math.max(high, value)], [Infinity, -Infinity]);
  }

  function look(from, to) {
    const span = clamp(to - from, LOWEST_SPAN_S, whole[1] - whole[0]);
    const start = clamp((from + to) / 2 - span / 2, whole[0], whole[1] - span);
    chart.setScale("x", { min: start, max: start + span });
    const step = STEPS_S.find((s) => span / s < 8) ?? 86400;
    byId("span").textContent = `${timeText(start, Math.min(step, 1))} to ${timeText(start + span, Math.min(step, 1))}`;
  }
  function zoom(factor, around) {
    const { min, max } = chart.scales.x, at = around ?? (min + max) / 2;
    look(at - (at - min) * factor, at + (max - at) * factor);
  }
  function move(share) {
    const { min, max } = chart.scales.x, by = share * (max - min);
    look(min + by, max + by);
  }

  // Threshold -------------------------------------------------------------------------------------------------------
  const number = (value, digits = 3) => Number(value.toPrecision(digits)).toLocaleString("en");
  const counted = (n, word) => `${n.toLocaleString("en")} ${word}${n === 1 ? "" : "s"}`;
  function setThreshold(point) {
    threshold = point.threshold;
    byId("counts").textContent = `${number(threshold, 4)}: ${counted(point.n_events, "event")} (${counted(point.n_alarms, "alarmed clip")}); `
      + `${number(point.false_alarms_per_hour)} false alarms an hour are to be expected of normal sound`;
    for (const row of rows) row.classList.toggle("below", Number(row.dataset.score) <= threshold);
    chart.redraw();
  }

  // Table -----------------------------------------------------------------------------------------------------------
  const rows = all("table.events tbody tr");
  function sortRows(button) {
    const heading = button.closest("th"), key = button.dataset.sort;
    const ascending = heading.getAttribute("aria-sort") ? heading.getAttribute("aria-sort") !== "ascending" : !["score", "alarms", "vanishes"].includes(key);
    all("table.events th").forEach((th) => th.removeAttribute("aria-sort"));
    heading.setAttribute("aria-sort", ascending ? "ascending" : "descending");
    const value = (row) => key === "decision" ? decisions[keyOf[row.dataset.event]]?.verdict ?? "" : row.dataset[key];
    const compare = key === "recording" || key === "decision" ? (a, b) => value(a).localeCompare(value(b)) : (a, b) => value(a) - value(b);
    rows.sort((a, b) => (ascending ? 1 : -1) * compare(a, b));
    rows[0]?.parentNode.append(...rows);
  }
  function filterRows() {
    const words = byId("words").value.toLowerCase(), grade = byId("grade").value, decided = byId("decided").value;
    for (const row of rows) {
      const verdict = decisions[keyOf[row.dataset.event]]?.verdict || "none";
      row.hidden = !(row.textContent.toLowerCase().includes(words) && (!grade || row.dataset.grade === grade) && (!decided || verdict === decided));
    }
    const shown = rows.filter((row) => !row.hidden).length;
    byId("filtered").textContent = shown < rows.length ? `${shown} of ${rows.length}` : "";
  }

  // Player: a cursor in every picture of the event -----------------------------------------------------------------------
  const articles = all("article[data-event]");
  function follow(audio, article) {
    const event = data.events[article.dataset.event - 1];
    const strips = all(".timed[data-from]", article).map((strip) => {
      const cursor = strip.appendChild(document.createElement("i"));
      cursor.className = "cursor";
      cursor.hidden = true;
      return [strip.dataset, cursor];
    });
    const place = () => {
      const at = Number(audio.dataset.from) + audio.currentTime;
      for (const [{ from, to, left = 0, right = 1 }, cursor] of strips) {
        const share = (at - from) / (to - from);
        cursor.hidden = share < 0 || share > 1;
        cursor.style.left = `${100 * (Number(left) + share * (right - left))}%`;
      }
      playhead = event.sound + audio.currentTime;
      chart?.redraw(false);
      if (!audio.paused) requestAnimationFrame(place);
    };
    audio.addEventListener("play", () => {
      all("audio").forEach((other) => other !== audio && other.pause());
      select(article);
      place();
    });
    audio.addEventListener("seeked", place);
    const buttons = all("button[aria-pressed]", article), picture = article.querySelector(".strip img");
    const heard = { sound: audio.src, picture: picture.src };
    for (const button of buttons) button.addEventListener("click", () => {
      const { currentTime, paused } = audio;
      audio.src = button.dataset.sound ?? heard.sound;
      picture.src = button.dataset.picture ?? heard.picture;
      audio.currentTime = currentTime;
      if (!paused) audio.play().catch(() => {});
      for (const other of buttons) other.setAttribute("aria-pressed", other === button);
    });
    for (const strip of all(".strip.timed, .steps.timed", article)) strip.addEventListener("click", (click) => {
      audio.currentTime = (click.offsetX / strip.clientWidth) * (strip.dataset.to - strip.dataset.from);
    });
  }

  let current = null;
  function select(article) {
    current?.classList.remove("current");
    current = article;
    current.classList.add("current");
    for (const row of rows) row.classList.toggle("current", row.dataset.event === article.dataset.event);
  }
  function go(id) {
    const article = byId(`event-${id}`), event = data.events[id - 1];
    if (!article) return byId(`row-${id}`)?.scrollIntoView({ block: "center" });
    select(article);
    article.scrollIntoView();
    const room = Math.max(30, event.to - event.from);
    if (chart) look(event.from - room, event.to + room);
  }

  // Review ----------------------------------------------------------------------------------------------------------
  const keyOf = Object.fromEntries(data.events.map((event) => [event.id, event.key]));
  const stored = `faithad ${data.model.join("-")} ${data.events.map((event) => event.key).join("").slice(0, 64)}`;
  const WORDS = { confirm: "confirmed", reject: "rejected", unsure: "unsure" };
  let decisions = { ...data.decisions };  // those of `faithad review`, then what was decided here since
  try { Object.assign(decisions, JSON.parse(localStorage.getItem(stored))); } catch { /* a browser that keeps nothing for local files */ }

  function showDecision(article) {
    const decision = decisions[keyOf[article.dataset.event]] ?? {};
    for (const radio of all("[type=radio]", article)) radio.checked = radio.value === decision.verdict;
    for (const name of ["kind", "note"]) article.querySelector(`[name=${name}]`).value = decision[name] ?? "";
    const cell = byId(`row-${article.dataset.event}`)?.querySelector(".decision");
    if (!cell) return;
    cell.textContent = [WORDS[decision.verdict], decision.kind].filter(Boolean).join(": ");
    cell.className = `decision script decision-${decision.verdict}`;
  }
  function decide(article, change) {
    const key = keyOf[article.dataset.event];
    decisions[key] = { verdict: "", kind: "", note: "", ...decisions[key], ...change };
    showDecision(article);
    keep();
  }
  function keep() {
    try { localStorage.setItem(stored, JSON.stringify(decisions)); } catch { /* see above */ }
    const made = articles.filter((article) => decisions[keyOf[article.dataset.event]]?.verdict).length;
    byId("progress").textContent = `${made} of ${counted(articles.length, "event")} decided`;
    const kinds = [...new Set(Object.values(decisions).map((decision) => decision.kind).filter(Boolean))].sort();
    byId("kinds").replaceChildren(...kinds.map((kind) => Object.assign(document.createElement("option"), { value: kind })));
    filterRows();
  }
  function save() {
    const made = Object.entries(decisions).filter(([, decision]) => decision.verdict);
    const file = { format: 1, decisions: made.map(([event_id, decision]) => ({ event_id, ...decision })) };
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([JSON.stringify(file, null, 1)], { type: "application/json" }));
    link.download = "decisions.json";
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  }
  async function load(file) {
    byId("problem").textContent = "";
    try {
      const read = JSON.parse(await file.text()), known = new Set(Object.values(keyOf));
      const own = read.decisions.filter((decision) => known.has(decision.event_id) && decision.verdict in WORDS);
      for (const { event_id, verdict, kind = "", note = "" } of own) decisions[event_id] = { verdict, kind: String(kind), note: String(note) };
      if (own.length < read.decisions.length) byId("problem").textContent = `${read.decisions.length - own.length} of ${read.decisions.length} decisions are about events that this audit does not have.`;
    } catch { byId("problem").textContent = "This file holds no decisions that were saved here."; }
    articles.forEach(showDecision);
    keep();
  }

  // Start -----------------------------------------------------------------------------------------------------------
  if (data.clips) {
    makeChart();
    all("[data-zoom]").forEach((button) => button.addEventListener("click", () => zoom(Number(button.dataset.zoom))));
    all("[data-pan]").forEach((button) => button.addEventListener("click", () => move(Number(button.dataset.pan))));
    document.querySelector("[data-all]").addEventListener("click", () => look(...whole));
  }
  const slider = byId("threshold");
  if (slider) {
    slider.addEventListener("input", () => setThreshold(data.points[slider.value]));
    setThreshold(data.points[slider.value]);
  }
  if (!rows.length) return;
  all("button[data-sort]").forEach((button) => button.addEventListener("click", () => sortRows(button)));
  ["words", "grade", "decided"].forEach((id) => byId(id).addEventListener("input", filterRows));
  for (const article of articles) {
    const audio = article.querySelector("audio");
    if (audio) follow(audio, article);
    showDecision(article);
    article.addEventListener("change", ({ target }) => {
      if (target.type === "radio") decide(article, { verdict: target.value });
      else if (target.name === "kind" || target.name === "note") decide(article, { [target.name]: target.value });
    });
  }
  byId("save").addEventListener("click", save);
  byId("load").addEventListener("change", ({ target }) => { if (target.files[0]) load(target.files[0]); target.value = ""; });
  keep();
  document.addEventListener("keydown", (press) => {
    const { key, target } = press;
    if (press.ctrlKey || press.altKey || press.metaKey || target.closest("input:not([type=radio]), select, textarea")) return;
    const verdict = { 1: "confirm", 2: "reject", 3: "unsure" }[key];
    if (key === "j" || key === "k") {
      const place = articles.indexOf(current) + (key === "j" ? 1 : -1);
      if (articles[place]) go(articles[place].dataset.event);
    } else if (verdict && current) decide(current, { verdict });
    else if (key === " " && current && !target.closest("button, a, summary, audio")) {
      const audio = current.querySelector("audio");
      if (audio?.paused) audio.play().catch(() => {});  // a pause before it begins is no error
      else audio?.pause();
    } else if (key === "e" && current) current.querySelector("button[aria-pressed=false]")?.click();
    else return;
    press.preventDefault();
  });
})();
