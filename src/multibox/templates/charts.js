// Charts with uPlot. A chart is a JSON value as reporting/series.py makes it.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const COLOURS = [
    "light-dark(#0072b2, #56b4e9)", "light-dark(#c24e00, #ff8a3d)", "light-dark(#00805a, #2cc99a)",
    "light-dark(#b0528b, #e59ac4)", "light-dark(#9a6a00, #f0c040)", "light-dark(#3b6fb5, #8fb8ff)",
    "light-dark(#1b1f24, #e6e9ec)", "light-dark(#6d747c, #9aa2ab)",
  ];
  const probe = document.createElement("span");
  probe.hidden = true;
  document.body.append(probe);
  // A canvas does not know light-dark() and variables.
  const resolve = (colour) => {
    probe.style.color = colour;
    return getComputedStyle(probe).color;
  };
  const shortStep = (step) => (step >= 1000 ? `${+(step / 1000).toPrecision(4)}k` : `${step}`);

  // The next number of 1, 2, 5, 10, 20, ... below or above.
  const round = (value, way) => {
    const power = 10 ** Math.floor(Math.log10(value));
    const steps = [1, 2, 5, 10];
    const near = way === Math.floor ? steps.findLast((step) => step * power <= value) : steps.find((step) => step * power >= value);
    return (near ?? 1) * power;
  };

  function marksPlugin(marks) {
    return { hooks: { draw: (plot) => {
      const { ctx, bbox } = plot;
      ctx.save();
      ctx.strokeStyle = ctx.fillStyle = resolve("var(--muted)");
      ctx.setLineDash([4 * devicePixelRatio, 3 * devicePixelRatio]);
      ctx.font = `${11 * devicePixelRatio}px system-ui, sans-serif`;
      ctx.textAlign = "right";
      for (const [place, text] of marks) {
        const x = Math.round(plot.valToPos(place, "x", true));
        if (x < bbox.left || x > bbox.left + bbox.width) continue;
        ctx.beginPath();
        ctx.moveTo(x, bbox.top);
        ctx.lineTo(x, bbox.top + bbox.height);
        ctx.stroke();
        ctx.save();
        ctx.translate(x - 3 * devicePixelRatio, bbox.top + 2);
        ctx.rotate(-Math.PI / 2);
        ctx.fillText(text, 0, 0);
        ctx.restore();
      }
      ctx.restore();
    } } };
  }

  function draw(figure) {
    const chart = data.charts[figure.dataset.chart];
    const place = figure.querySelector(".plot");
    const controls = figure.querySelector(".controls");
    const values = chart.series.map((line) => line.values);
    const colour = (number) => COLOURS[number % COLOURS.length];
    const byStep = chart.axis === "step";
    // Learning rates go down to 0 over many powers of ten.
    const show = (value) => (value == null ? "–" : chart.digits > 4 ? `${+value.toPrecision(3)}` : value.toFixed(chart.digits));
    const nearest = (place) => chart.places.reduce((best, other, at) => (Math.abs(other - place) < Math.abs(chart.places[best] - place) ? at : best), 0);
    const axis = (extra) => ({
      stroke: () => resolve("var(--muted)"), grid: { stroke: () => resolve("var(--line)"), width: 1 },
      ticks: { show: false }, font: "12px system-ui, sans-serif", ...extra,
    });
    const low = chart.places[0], high = chart.places[chart.places.length - 1];
    const all = values.flat().filter((value) => value != null);
    // As in the pictures of report.md.
    const log = chart.logarithmic && Math.min(...all) > 0 && Math.max(...all) > 20 * Math.min(...all);
    const few = chart.places.length < 30;
    const plot = new uPlot({
      width: Math.max(260, place.clientWidth), height: 280,
      legend: { show: false },
      cursor: { y: false, drag: { x: true, y: false } },
      scales: {
        x: { time: false, range: (_, from, to) => (from === to ? [from - 1, to + 1] : [from, to]) },
        y: {
          distr: log ? 3 : 1,
          range: chart.unitRange ? [0, 1] : log ? (_, from, to) => [round(from, Math.floor), round(to, Math.ceil)] : (_, from, to) => [Math.min(0, from ?? 0), (to ?? 1) * 1.05 || 1],
        },
      },
      axes: [
        axis({ label: chart.axis, labelSize: 20, labelFont: "12px system-ui, sans-serif", size: 30, values: (_, ticks) => ticks.map((tick) => (byStep ? shortStep(tick) : `${tick}`)) }),
        axis({ size: 58, values: (_, ticks) => ticks.map((tick) => (tick == null ? "" : `${+tick.toPrecision(6)}`)) }),
      ],
      series: [{}, ...chart.series.map((line, number) => ({
        label: line.name, show: line.shown, stroke: () => resolve(colour(number)), width: 1.75,
        dash: line.dash ? [5, 4] : undefined, spanGaps: true, points: { show: few && byStep, size: 5 },
      }))],
      plugins: [marksPlugin(chart.marks)],
      hooks: { setCursor: [(self) => tell(self.cursor.idx)] },
    }, [chart.places, ...values], place);

    const readout = document.createElement("output");
    const lines = chart.series.map((line, number) => {
      const button = document.createElement("button");
      button.type = "button";
      button.className = "line";
      button.setAttribute("aria-pressed", line.shown);
      const swatch = document.createElement("i");
      swatch.style.borderColor = colour(number);
      if (line.dash) swatch.className = "dash";
      const value = document.createElement("b");
      button.append(swatch, `${line.name} `, value);
      button.addEventListener("click", () => {
        const shown = !plot.series[number + 1].show;
        plot.setSeries(number + 1, { show: shown });
        button.setAttribute("aria-pressed", shown);
      });
      return { button, value };
    });
    function tell(index) {
      // While the pointer is outside, the last value of each line is shown; over scores, the
      // values at the marked threshold; over recalls, none.
      const at = index ?? (byStep || !chart.marks.length ? null : nearest(chart.marks[0][0]));
      const last = (line) => (byStep ? show(line.findLast((value) => value != null)) : "");
      readout.textContent = at != null ? `${chart.axis} ${byStep ? chart.places[at].toLocaleString("en") : chart.places[at]}` : byStep ? "last" : "";
      lines.forEach(({ value }, number) => {
        value.textContent = at == null ? last(values[number]) : show(values[number][at]);
      });
    }
    const zoom = (from, to) => plot.setScale("x", { min: Math.max(low, from), max: Math.min(high, to) });
    const scaled = (factor) => {
      const { min, max } = plot.scales.x;
      const centre = plot.cursor.idx == null ? (min + max) / 2 : chart.places[plot.cursor.idx];
      const half = ((max - min) * factor) / 2;
      zoom(centre - half, centre + half);
    };
    const actions = { "Zoom in": () => scaled(0.5), "Zoom out": () => scaled(2), "Whole range": () => zoom(low, high) };
    for (const [name, act] of Object.entries(actions)) {
      const button = document.createElement("button");
      button.type = "button";
      button.className = "zoom";
      button.textContent = name;
      button.addEventListener("click", act);
      controls.append(button);
    }
    controls.append(readout, ...lines.map(({ button }) => button));
    place.addEventListener("keydown", (event) => {
      const at = plot.cursor.idx ?? chart.places.length;
      const moves = { ArrowLeft: at - 1, ArrowRight: at + 1, Home: 0, End: chart.places.length - 1 };
      if (event.key in moves) {
        const next = Math.max(0, Math.min(chart.places.length - 1, moves[event.key]));
        plot.setCursor({ left: plot.valToPos(chart.places[next], "x"), top: 10 });
      } else if (event.key === "+" || event.key === "-") {
        scaled(event.key === "+" ? 0.5 : 2);
      } else if (event.key === "0") {
        zoom(low, high);
      } else return;
      event.preventDefault();
    });
    tell(null);
    figure.plot = plot;
    return plot;
  }

  const plots = [...document.querySelectorAll("figure[data-chart]")].map((figure) => [figure, draw(figure)]);
  document.addEventListener("schemechange", () => plots.forEach(([, plot]) => plot.redraw(false, true)));
  const fit = () => plots.forEach(([figure, plot]) => {
    const width = Math.max(260, figure.querySelector(".plot").clientWidth);
    if (width !== plot.width) plot.setSize({ width, height: plot.height });
  });
  addEventListener("resize", fit);
  addEventListener("beforeprint", fit);
  addEventListener("afterprint", fit);
})();
