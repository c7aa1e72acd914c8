"""The page of `report`: its style and its script, with nothing fetched from elsewhere."""

STYLE = """
:root { color-scheme: light; --ink: #1d2733; --soft: #5d6b7a; --line: #dde3ea; --paper: #f6f8fa; }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 15px/1.5 system-ui, sans-serif; }
main { max-width: 1180px; margin: 0 auto; padding: 24px; }
h1 { font-size: 1.6rem; margin: 0; } h2 { font-size: 1.15rem; margin: 32px 0 12px; }
p { margin: 4px 0; } .soft { color: var(--soft); font-size: .9rem; }
.grid { display: grid; gap: 16px; grid-template-columns: repeat(auto-fill, minmax(min(100%, 520px), 1fr)); }
.card { background: #fff; border: 1px solid var(--line); border-radius: 10px; padding: 12px 14px; }
.card h3 { font-size: .95rem; margin: 0; font-weight: 600; }
.head { display: flex; justify-content: space-between; align-items: center; gap: 8px; }
button { font: inherit; font-size: .8rem; border: 1px solid var(--line); border-radius: 6px; background: #fff;
  color: var(--soft); padding: 1px 9px; cursor: pointer; }
button[aria-pressed=true] { background: #e8f0f9; color: #1f5a96; border-color: #9fc1e4; }
svg { display: block; width: 100%; height: auto; touch-action: pan-y; cursor: crosshair; }
:is(svg, button, input):focus-visible { outline: 2px solid #2a6fb5; outline-offset: 1px; }
svg text { font: 11px system-ui, sans-serif; fill: var(--soft); }
.key { display: flex; flex-wrap: wrap; gap: 2px 14px; font-size: .8rem; color: var(--soft); min-height: 1.5em;
  font-variant-numeric: tabular-nums; }
.key i { display: inline-block; width: 12px; height: 3px; margin-right: 5px; vertical-align: middle; }
.key b { color: var(--ink); font-weight: 600; }
.bar { display: flex; height: 22px; border-radius: 6px; overflow: hidden; margin: 6px 0; }
.bar span { display: block; height: 100%; }
.pair { display: grid; gap: 16px; grid-auto-flow: column; grid-auto-columns: minmax(0, 1fr); }
figure { margin: 0; } figure img { width: 100%; max-width: 560px; border-radius: 8px; display: block; }
input[type=range] { width: 100%; accent-color: #2a6fb5; }
table { border-collapse: collapse; width: 100%; background: #fff; font-size: .86rem; }
th, td { text-align: left; padding: 4px 10px; border-bottom: 1px solid var(--line); vertical-align: top;
  overflow-wrap: anywhere; } th { font-weight: 600; } td:first-child { white-space: nowrap; }
tr.differs td { background: #fff4d6; }
"""

SCRIPT = r"""
'use strict';
const runs = JSON.parse(document.getElementById('data').textContent);
const COLOURS = ['#2a6fb5', '#d1621f', '#3a8f52', '#8a4fb0'];
const PARTS = {stepping: '#3a8f52', compiling: '#7aa6d8', checkpoints: '#d9a441', pictures: '#8a4fb0',
  snapshots: '#c79bd6',
  waiting: '#b9c3ce', restarts: '#c0504d'};
const $ = (tag, attributes = {}, ...children) => {
  const svg = ['svg', 'path', 'line', 'text', 'rect', 'g', 'circle', 'clipPath'].includes(tag);
  const space = svg ? 'http://www.w3.org/2000/svg' : 'http://www.w3.org/1999/xhtml';
  const node = document.createElementNS(space, tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
};
const show = v => v === null || v === undefined ? '–' : Math.abs(v) >= 1e5 || (v !== 0 && Math.abs(v) < 1e-3)
  ? v.toExponential(2) : String(+v.toPrecision(4));
const words = name => name.replaceAll('_', ' ').replace(/^./, c => c.toUpperCase());

// ---- curves: one range of steps and one cursor for all of them
const charts = [];
const steps = runs.flatMap(run => run.lines.map(line => line.step));
const WHOLE = steps.length ? [Math.min(...steps), Math.max(...steps)] : [0, 1];
if (WHOLE[0] === WHOLE[1]) { WHOLE[0] -= 1; WHOLE[1] += 1; }
let range = [...WHOLE], cursor = null;
const W = 560, H = 250, L = 58, R = 10, T = 10, B = 26;
function zoom(low, high) {
  const least = Math.max(1, (WHOLE[1] - WHOLE[0]) / 1000);
  low = Math.max(WHOLE[0], low); high = Math.min(WHOLE[1], high);
  if (high - low >= least) range = [low, high];
  charts.forEach(draw => draw());
}
function scale(factor, at = (range[0] + range[1]) / 2) {
  zoom(at - (at - range[0]) * factor, at + (range[1] - at) * factor);
}
function reset() { range = [...WHOLE]; charts.forEach(draw => draw()); }
function pan(share) {
  const width = range[1] - range[0];
  const low = Math.min(Math.max(WHOLE[0], range[0] + share * width), WHOLE[1] - width);
  zoom(low, low + width);
}
function ticks(low, high, count) {
  const raw = (high - low) / count, power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map(m => m * power).find(s => s >= raw) || 10 * power, out = [];
  for (let v = Math.ceil(low / step) * step; v <= high + step * 1e-9; v += step) out.push(+v.toPrecision(12));
  return out;
}
function nearest(points, x) {
  let low = 0, high = points.length - 1;
  while (low < high) { const mid = low + high >> 1; points[mid][0] < x ? low = mid + 1 : high = mid; }
  return low && x - points[low - 1][0] < points[low][0] - x ? low - 1 : low;
}
function chart(host, title, series) {
  series = series.map(s => ({...s, points: s.points.filter(p => p[1] !== null && p[1] !== undefined)}))
    .filter(s => s.points.length);
  if (!series.length) return;
  const values = series.flatMap(s => s.points.map(p => p[1])).filter(v => v !== 0);
  const positive = values.length && Math.min(...values) > 0;
  let logarithmic = positive && Math.max(...values) / Math.min(...values) > 30, drag = null;
  const button = $('button', {type: 'button', 'aria-pressed': logarithmic}, 'log');
  const svg = $('svg', {viewBox: `0 0 ${W} ${H}`, tabindex: 0, role: 'img', 'aria-label':
    `${title} by step; arrows move the cursor, + and - zoom, shift and arrows pan, Escape shows all`});
  const key = $('div', {class: 'key', 'aria-live': 'polite'});
  host.append($('div', {class: 'card'},
    $('div', {class: 'head'}, $('h3', {}, title), positive ? button : ''), svg, key));
  const x = v => L + (v - range[0]) / (range[1] - range[0]) * (W - L - R);
  const unx = px => range[0] + (px - L) / (W - L - R) * (range[1] - range[0]);
  const f = v => logarithmic ? Math.log10(v) : v;
  function draw() {
    const seen = series.flatMap(s => s.points.filter((p, i) => (s.points[i + 1] || p)[0] >= range[0] &&
      (s.points[i - 1] || p)[0] <= range[1]).map(p => p[1])).filter(v => !logarithmic || v > 0).map(f);
    let low = Math.min(...seen), high = Math.max(...seen);
    if (!seen.length) { low = 0; high = 1; }
    const room = (high - low) * 0.05 || Math.abs(high) * 0.1 || 1;
    low -= room; high += room;
    const y = v => T + (high - f(v)) / (high - low) * (H - T - B);
    svg.replaceChildren($('rect', {x: L, y: T, width: W - L - R, height: H - T - B, fill: '#fff'}));
    let marks = ticks(low, high, 5).map(v => [v, logarithmic ? 10 ** v : v]);
    if (logarithmic && high - low > 1.5) marks = marks.filter(([v]) => Number.isInteger(v));
    for (const [v, value] of marks) {
      const at = T + (high - v) / (high - low) * (H - T - B);
      svg.append($('line', {x1: L, x2: W - R, y1: at, y2: at, stroke: '#e8ecf1'}),
        $('text', {x: L - 6, y: at + 4, 'text-anchor': 'end'}, show(value)));
    }
    for (const v of ticks(...range, 6)) svg.append($('text', {x: x(v), y: H - 8, 'text-anchor': 'middle'},
      v.toLocaleString('en')));
    const name = `clip${charts.indexOf(draw)}`, clip = $('clipPath', {id: name});
    clip.append($('rect', {x: L, y: T, width: W - L - R, height: H - T - B}));
    const group = $('g', {'clip-path': `url(#${name})`});
    for (const s of series) {
      const d = s.points.filter(p => !logarithmic || p[1] > 0)
        .map((p, i) => `${i ? 'L' : 'M'}${x(p[0]).toFixed(1)} ${y(p[1]).toFixed(1)}`).join('');
      group.append($('path', {d, fill: 'none', stroke: s.colour, 'stroke-width': 1.8,
        'stroke-linejoin': 'round'}));
    }
    svg.append(clip, group);
    key.replaceChildren(cursor === null ? '' : $('b', {}, `step ${Math.round(cursor).toLocaleString('en')}`));
    for (const s of series) {
      const point = s.points[cursor === null ? s.points.length - 1 : nearest(s.points, cursor)];
      const sample = $('i');
      sample.style.background = s.colour;
      key.append($('span', {}, sample, `${s.name} `, $('b', {}, show(point[1]))));
      if (cursor !== null && (!logarithmic || point[1] > 0)) group.append($('circle',
        {cx: x(point[0]), cy: y(point[1]), r: 3.5, fill: s.colour, stroke: '#fff'}));
    }
    if (cursor !== null) group.prepend($('line', {class: 'cursor', x1: x(cursor), x2: x(cursor), y1: T,
      y2: H - B, stroke: '#9aa7b5', 'stroke-dasharray': '3 3'}));
    if (drag && drag[0] !== drag[1]) svg.append($('rect', {x: Math.min(...drag), y: T, height: H - T - B,
      width: Math.abs(drag[0] - drag[1]), fill: '#2a6fb5', opacity: 0.15}));
  }
  const place = event => {
    const box = svg.getBoundingClientRect();
    return Math.min(W - R, Math.max(L, (event.clientX - box.left) / box.width * W));
  };
  const to = v => { cursor = v; charts.forEach(redraw => redraw()); };
  svg.addEventListener('pointermove', event => {
    const px = place(event);
    if (drag) drag[1] = px;
    const points = series[0].points;
    to(points[nearest(points, unx(px))][0]);
  });
  svg.addEventListener('pointerleave', () => { if (!drag) to(null); });
  svg.addEventListener('pointerdown', event => {
    svg.setPointerCapture(event.pointerId); drag = [place(event), place(event)];
  });
  svg.addEventListener('pointerup', () => {
    const ends = drag && drag.map(unx).sort((a, b) => a - b), wide = drag && Math.abs(drag[0] - drag[1]) > 5;
    drag = null;
    if (wide) zoom(...ends);
  });
  svg.addEventListener('dblclick', reset);
  svg.addEventListener('wheel', event => {
    if (!event.ctrlKey && !event.shiftKey) return;
    event.preventDefault(); scale(event.deltaY + event.deltaX > 0 ? 1.25 : 0.8, unx(place(event)));
  }, {passive: false});
  svg.addEventListener('keydown', event => {
    const points = series[0].points, way = {ArrowLeft: -1, ArrowRight: 1}[event.key];
    if (way && event.shiftKey) pan(way * 0.2);
    else if (way) {
      const now = cursor === null ? (way > 0 ? -1 : points.length) : nearest(points, cursor);
      to(points[Math.min(points.length - 1, Math.max(0, now + way))][0]);
    } else if (event.key === '+' || event.key === '=') scale(0.7, cursor ?? undefined);
    else if (event.key === '-') scale(1 / 0.7, cursor ?? undefined);
    else if (event.key === 'Escape' || event.key === '0') reset();
    else return;
    event.preventDefault();
  });
  button.addEventListener('click', () => {
    logarithmic = !logarithmic; button.setAttribute('aria-pressed', logarithmic); draw();
  });
  charts.push(draw);
  draw();
}
const curves = document.getElementById('curves');
const names = [...new Set(runs.flatMap(run => run.lines.flatMap(line => Object.keys(line)
  .filter(name => typeof line[name] === 'number' && !['step', 'seconds'].includes(name)))))];
for (const name of names) chart(curves, words(name), runs.map((run, i) => ({name: run.name,
  colour: COLOURS[i], points: run.lines.map(line => [line.step, line[name]])})));

// ---- loss by noise level: a curve for each bin of log-SNR, from clean (light) to noisy (dark)
const levels = document.getElementById('levels');
runs.forEach(run => {
  const lines = run.lines.filter(line => line.loss_by_log_snr);
  if (!lines.length) return;
  const edges = lines.at(-1).log_snr_edges || [], count = lines[0].loss_by_log_snr.length;
  const bin = b => edges.length ? `${show(edges[b])} to ${show(edges[b + 1])}` : `${b}`;
  chart(levels, `Loss by log-SNR, ${run.name}`, Array.from({length: count}, (_, b) => ({name: bin(b),
    colour: `hsl(${260 - 210 * b / Math.max(1, count - 1)} 65% ${35 + 15 * b / count}%)`,
    points: lines.map(line => [line.step, line.loss_by_log_snr[b]])})));
});
if (!levels.children.length) document.getElementById('levels-part').remove();

// ---- where the time went
const spent = document.getElementById('goodput');
runs.forEach(run => {
  if (!run.goodput) return;
  const total = Object.values(run.goodput).reduce((a, b) => a + b, 0) || 1;
  const bar = $('div', {class: 'bar'}), key = $('div', {class: 'key'});
  for (const [name, seconds] of Object.entries(run.goodput)) {
    const part = $('span', {title: `${name}: ${show(seconds)} s`}), sample = $('i');
    part.style.width = `${100 * seconds / total}%`;
    part.style.background = sample.style.background = PARTS[name] || '#b9c3ce';
    bar.append(part);
    key.append($('span', {}, sample, `${name} `, $('b', {}, `${(100 * seconds / total).toFixed(1)} %`),
      ` ${show(seconds)} s`));
  }
  spent.append($('div', {class: 'card'}, $('h3', {}, `${run.name}: ${show(total)} s`), bar, key));
});
if (!spent.children.length) document.getElementById('goodput-part').remove();

// ---- pictures: one slider for all runs
const shown = [...new Set(runs.flatMap(run => run.pictures.map(p => p.step)))].sort((a, b) => a - b);
const pictures = document.getElementById('pictures');
if (shown.length) {
  const slider = $('input', {type: 'range', min: 0, max: shown.length - 1, value: shown.length - 1,
    'aria-label': 'step of the pictures'});
  const frames = runs.filter(run => run.pictures.length).map(run => ({run, image: $('img'),
    caption: $('figcaption', {class: 'soft'})}));
  const turn = () => frames.forEach(({run, image, caption}) => {
    const earlier = run.pictures.filter(p => p.step <= shown[slider.value]);
    const picture = earlier.at(-1) || run.pictures[0];
    image.src = picture.uri;
    image.alt = caption.textContent = `${run.name}, samples at step ${picture.step.toLocaleString('en')}`;
  });
  slider.addEventListener('input', turn);
  pictures.append(slider, $('div', {class: 'pair'},
    ...frames.map(({image, caption}) => $('figure', {}, image, caption))));
  turn();
} else document.getElementById('pictures-part').remove();
"""
