'use strict';
// Without this script everything is on the page; with it, pictures answer to the mouse and to the
// arrow keys, and tables sort and filter. What a tooltip says is read from the picture's table.
(() => {
  const SVG = 'http://www.w3.org/2000/svg';
  const text = (cell) => cell.textContent.trim();
  const made = (tag, facts) => Object.assign(document.createElement(tag), facts);
  const tip = document.body.appendChild(made('div', { id: 'tip', role: 'status' }));

  // A table's number, or null where there is none.
  const number = (words) => {
    const value = Number(words.replace(/[,%]/g, ''));
    return words === '' || Number.isNaN(value) ? null : value;
  };

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
        if (away < least && !mark.line.classList.contains('out')) [best, least] = [[s, n], away];
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

  // A filter: words that a row must contain, or a column, < or > or =, and a number.
  function wanted(heads, query) {
    const asked = query.trim().toLowerCase().match(/^(.+?)\s*(<=|>=|<|>|=)\s*(-?[\d.,e+-]+)$/);
    const column = asked ? heads.findIndex((head) => head.toLowerCase() === asked[1]) : -1;
    if (column < 0) return (row) => row.textContent.toLowerCase().includes(query.trim().toLowerCase());
    const than = number(asked[3]);
    const signs = { '<': [-1], '>': [1], '=': [0], '<=': [-1, 0], '>=': [1, 0] }[asked[2]];
    return (row) => {
      const value = number(text(row.cells[column]));
      return value !== null && signs.includes(Math.sign(value - than));
    };
  }

  function control(table) {
    const head = [...table.tHead.rows[0].cells], heads = head.map(text);
    const body = table.tBodies[0], rows = [...body.rows], svg = table.closest('figure')?.querySelector('svg');
    head.forEach((cell, column) => {
      const sort = () => {
        const down = cell.getAttribute('aria-sort') === 'ascending';
        head.forEach((other) => other.removeAttribute('aria-sort'));
        cell.setAttribute('aria-sort', down ? 'descending' : 'ascending');
        const sign = down ? -1 : 1, unknown = (key) => key === '' || key === '-';
        body.append(...[...rows].sort((a, b) => {
          const [x, y] = [a, b].map((row) => text(row.cells[column])), [v, w] = [number(x), number(y)];
          if (unknown(x) || unknown(y)) return unknown(x) - unknown(y);
          return sign * (v !== null && w !== null ? v - w : x.localeCompare(y));
        }));
      };
      const facts = { type: 'button', textContent: heads[column], title: 'Sort by this column' };
      cell.replaceChildren(made('button', { ...facts, onclick: sort }));
    });
    const first = heads.find((_, i) => i && number(text(rows[0].cells[i])) !== null) ?? heads[1];
    const input = made('input', { type: 'search', placeholder: `a word, or ${first} > 0.5`, oninput: apply });
    const filter = made('label', { className: 'filter' }), count = made('span', { role: 'status' });
    filter.append('Filter', input, count);
    table.closest('.scroll').before(filter);
    function apply() {
      const shown = new Set(rows.filter(wanted(heads, input.value)));
      rows.forEach((row) => { row.hidden = !shown.has(row); });
      count.textContent = `${shown.size} of ${rows.length} rows`;
      for (const line of svg?.querySelectorAll('polyline.line') ?? [])
        line.classList.toggle('out', rows[Number(line.dataset.row)].hidden);
    }
    apply();
  }

  // Saving: a copy of the picture with its heading and the rules of pictures, in light colours.
  function alone(figure) {
    const svg = figure.querySelector('svg').cloneNode(true), sheet = document.querySelector('#pictures').textContent;
    const light = new Map([...sheet.split('@media')[0].matchAll(/(--[\w-]+): (#\w+)/g)].map((m) => [m[1], m[2]]));
    const rules = sheet.slice(sheet.indexOf('/* Pictures')).replace(/var\((--[\w-]+)\)/g, (_, name) => light.get(name));
    const [, , width, height] = svg.dataset.titled.split(' ');
    const style = document.createElementNS(SVG, 'style');
    style.textContent = `svg { font-family: sans-serif; }\n${rules}`;
    svg.querySelectorAll('.cursor').forEach((cursor) => cursor.remove());
    svg.classList.remove('picking');
    for (const [key, value] of Object.entries({ viewBox: svg.dataset.titled, width, height, xmlns: SVG }))
      svg.setAttribute(key, value);
    svg.prepend(style);
    return new XMLSerializer().serializeToString(svg);
  }

  function csv(table) {
    const quoted = (words) => (/[",\n]/.test(words) ? `"${words.replaceAll('"', '""')}"` : words);
    const plain = (cell) => quoted(text(cell).replace(/(?<=\d),(?=\d{3})/g, ''));
    return [...table.rows].map((row) => [...row.cells].map(plain).join(',')).join('\n') + '\n';
  }

  function save(name, blob) {
    const link = made('a', { href: URL.createObjectURL(blob), download: name });
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  }

  async function raster(source) { // three times as large, for slides
    const image = made('img', { src: `data:image/svg+xml;charset=utf-8,${encodeURIComponent(source)}` });
    await image.decode();
    const canvas = made('canvas', { width: 3 * image.width, height: 3 * image.height });
    canvas.getContext('2d').drawImage(image, 0, 0, canvas.width, canvas.height);
    return new Promise((done) => { canvas.toBlob(done, 'image/png'); });
  }

  function menu(figure) {
    const box = made('div', { className: 'save', textContent: 'Save as' }), name = figure.dataset.file;
    const button = (label, says, onclick) => {
      const ariaLabel = `${says}: ${text(figure.querySelector('h3'))}`;
      box.append(made('button', { type: 'button', textContent: label, ariaLabel, onclick }));
    };
    button('SVG', 'Save the picture as SVG', () => save(`${name}.svg`, new Blob([alone(figure)], { type: 'image/svg+xml' })));
    button('PNG', 'Save the picture as PNG', async () => save(`${name}.png`, await raster(alone(figure))));
    figure.querySelectorAll('table').forEach((table, i) => {
      const words = csv(table), end = i ? '-also' : '', kind = i ? 'CSV 2' : 'CSV'; // before it is sorted
      button(kind, `Save ${i ? 'the second table' : 'the numbers'} as ${kind}`,
        () => save(`${name}${end}.csv`, new Blob([words], { type: 'text/csv' })));
    });
    figure.querySelector('details').before(box);
  }

  document.querySelectorAll('figure').forEach(menu);
  document.querySelectorAll('figure').forEach(explore);
  document.querySelectorAll('table').forEach(control);
  document.addEventListener('keydown', (event) => { if (event.key === 'Escape') tip.textContent = ''; });
})();
