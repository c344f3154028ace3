'use strict';
// Without this script everything is on the page; with it, pictures answer to the mouse and to the
// arrow keys. What a tooltip says is read from the picture's table.
(() => {
  const SVG = 'http://www.w3.org/2000/svg';
  const text = (cell) => cell.textContent.trim();
  const tip = Object.assign(document.createElement('div'), { id: 'tip', role: 'status' });
  document.body.append(tip);

  // Marks of every line: where each is, what is said of it, and the line that it belongs to.
  function marks(svg, table) {
    const heads = [...table.tHead.rows[0].cells].map(text), rows = [...table.tBodies[0].rows];
    return [...svg.querySelectorAll('polyline')].map((line) => {
      const first = Number(line.dataset.row), column = Number(line.dataset.col);
      return [...line.points].map(({ x, y }, n) => {
        const row = rows[column ? first : first + n];
        const said = heads.map((head, i) => `${head}${i ? ':' : ''} ${text(row.cells[i])}`);
        return { x, y, line, says: (column ? [said[0], said[column + n]] : said).join('\n') };
      });
    });
  }

  function explore(figure) {
    const svg = figure.querySelector('svg'), found = marks(svg, figure.querySelector('table'));
    const named = [...svg.querySelectorAll(':scope > title, :scope > desc')];
    svg.setAttribute('aria-label', named.map(text).join('. '));
    svg.removeAttribute('aria-labelledby');
    named[0].remove(); // browsers would show it over the picture
    if (!found.length) return;
    svg.tabIndex = 0;
    const cursor = document.createElementNS(SVG, 'circle');
    const set = (facts) => Object.entries(facts).forEach((fact) => cursor.setAttribute(...fact));
    set({ class: 'cursor', r: 6 });
    const cells = svg.querySelector('.cells'), count = figure.querySelector('tbody').rows.length;
    const reach = cells ? 0.62 * cells.getBBox().width / count : 30; // half a cell's diagonal
    let at = null;

    function hide() {
      at = null;
      tip.textContent = '';
      cursor.remove();
      svg.classList.remove('picking');
      svg.querySelectorAll('.picked').forEach((line) => line.classList.remove('picked'));
    }
    function show(s, n) {
      const mark = found[s][n], m = svg.getScreenCTM();
      hide();
      at = [s, n];
      set({ cx: mark.x, cy: mark.y });
      svg.append(cursor);
      svg.classList.toggle('picking', mark.line.classList.contains('line'));
      mark.line.classList.add('picked');
      tip.textContent = mark.says;
      const x = m.e + m.a * mark.x, y = m.f + m.d * mark.y, room = 14;
      const left = x + room + tip.offsetWidth > innerWidth ? x - room - tip.offsetWidth : x + room;
      tip.style.left = `${Math.max(4, left)}px`;
      tip.style.top = `${Math.max(4, Math.min(y - tip.offsetHeight / 2, innerHeight - tip.offsetHeight - 4))}px`;
    }
    function move(event) {
      const m = svg.getScreenCTM(), x = (event.clientX - m.e) / m.a, y = (event.clientY - m.f) / m.d;
      let best = null, least = reach;
      found.forEach((series, s) => series.forEach((mark, n) => {
        const away = Math.hypot(mark.x - x, mark.y - y);
        if (away < least) [best, least] = [[s, n], away];
      }));
      if (best) show(...best); else hide();
    }
    svg.onpointermove = svg.onpointerdown = move;
    svg.onpointerleave = svg.onblur = hide;
    svg.onfocus = () => { if (svg.matches(':focus-visible')) show(0, 0); };
    svg.onkeydown = (event) => {
      const [s, n] = at ?? [0, 0];
      const to = {
        ArrowRight: [s, n + 1], ArrowLeft: [s, n - 1], Home: [s, 0], End: [s, Infinity],
        ArrowDown: [s + 1, n], ArrowUp: [s - 1, n],
      }[event.key];
      if (event.key === 'Escape') hide();
      if (!to) return;
      event.preventDefault();
      const series = Math.max(0, Math.min(to[0], found.length - 1));
      const x = found[s][n].x, others = found[series];
      const same = series === s ? to[1] : others.reduce( // the mark above or below
        (best, mark, i) => (Math.abs(mark.x - x) < Math.abs(others[best].x - x) ? i : best), 0);
      show(series, Math.max(0, Math.min(same, others.length - 1)));
    };
  }

  document.querySelectorAll('figure').forEach(explore);
  document.addEventListener('keydown', (event) => { if (event.key === 'Escape') tip.textContent = ''; });
})();
