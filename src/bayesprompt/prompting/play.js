// The page "play": trained networks that predict a reader's coin flips, computed where the page is read.
// Token 0 is heads. A model is {start, embed, read, heads}: `read(state, row)` returns a new state and leaves the old one
// as it is, so that a flip can be looked ahead to, or taken back, at no cost.
(() => {
  // ---- Networks: the same sums as bayesprompt.models, one row at a time --------------------------------------------

  const CODE = Object.fromEntries(
    [..."ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"].map((sign, value) => [sign, value]),
  );
  const floats = (text) => new Float32Array(Uint8Array.from(atob(text), (sign) => sign.charCodeAt(0)).buffer);

  // Weights travel as text: float32 numbers, a dot, and 12-bit numbers of two signs each. A matrix of 12 bits has a scale
  // for each column among the float32 numbers.
  const decode = (text, arrays) => {
    const [whole, packed] = text.split(".");
    const [real, weights] = [floats(whole), {}];
    let [r, q] = [0, 0];
    for (const [name, rows, columns, bits] of arrays) {
      if (bits === 32) {
        weights[name] = real.subarray(r, (r += rows * columns));
        continue;
      }
      const scale = real.subarray(r, (r += columns));
      const matrix = (weights[name] = new Float32Array(rows * columns));
      for (let i = 0; i < matrix.length; i++, q += 2) {
        matrix[i] = (64 * CODE[packed[q]] + CODE[packed[q + 1]] - 2048) * scale[i % columns];
      }
    }
    return weights;
  };

  // sum += row @ matrix, the matrix (rows, columns) lying row after row
  const addProduct = (sum, row, matrix) => {
    const columns = sum.length;
    for (let i = 0; i < row.length; i++) {
      const [x, from] = [row[i], i * columns];
      for (let j = 0; j < columns; j++) sum[j] += x * matrix[from + j];
    }
    return sum;
  };
  const product = (row, matrix) => addProduct(new Float64Array(matrix.length / row.length), row, matrix);
  const plus = (a, b) => a.map((x, i) => x + b[i]);
  const sigmoid = (x) => 1 / (1 + Math.exp(-x));
  const gelu = (x) => 0.5 * x * (1 + Math.tanh(Math.sqrt(2 / Math.PI) * (x + 0.044715 * x ** 3)));

  const layerNorm = (x, scale, bias) => {
    const mean = x.reduce((sum, y) => sum + y, 0) / x.length;
    const variance = x.reduce((sum, y) => sum + (y - mean) ** 2, 0) / x.length;
    return x.map((y, i) => ((y - mean) / Math.sqrt(variance + 1e-6)) * scale[i] + (bias ? bias[i] : 0));
  };

  // Cell and hidden state go from row to row; gates lie in the order i, f, g, o.
  const lstm = (w) => {
    const width = w.recurrent.length / w.bias.length;
    return {
      start: { cell: new Float64Array(width), output: new Float64Array(width) },
      read: (state, row) => {
        const gates = addProduct(addProduct(Float64Array.from(w.bias), row, w.kernel), state.output, w.recurrent);
        const gate = (number, j) => gates[number * width + j];
        const cell = state.cell.map((c, j) => sigmoid(gate(1, j)) * c + sigmoid(gate(0, j)) * Math.tanh(gate(2, j)));
        return { cell, output: cell.map((c, j) => sigmoid(gate(3, j)) * Math.tanh(c)) };
      },
    };
  };

  // One block. A row asks all rows before it and itself, whose keys and values are kept.
  const transformer = (w, heads) => ({
    start: { keys: [], values: [] },
    read: (state, row) => {
      const [width, place] = [row.length, state.keys.length];
      const [half, size] = [width / 2, width / heads];
      let x = Float64Array.from(row, (y, i) => {
        const angle = place * Math.fround(1e4 ** (-(2 * (i % half)) / width));
        return y + (i < half ? Math.sin(angle) : Math.cos(angle));
      });
      const seen = layerNorm(x, w["attention_norm.scale"], w["attention_norm.bias"]);
      const query = layerNorm(product(seen, w["query.kernel"]), w["query_norm.scale"]);
      const keys = [...state.keys, layerNorm(product(seen, w["key.kernel"]), w["key_norm.scale"])];
      const values = [...state.values, product(seen, w["value.kernel"])];
      const mixed = new Float64Array(width);
      for (let from = 0; from < width; from += size) {
        const scores = keys.map((key) => {
          let score = 0;
          for (let i = from; i < from + size; i++) score += query[i] * key[i];
          return score / Math.sqrt(size);
        });
        const most = Math.max(...scores);
        const weights = scores.map((score) => Math.exp(score - most));
        const total = weights.reduce((sum, y) => sum + y, 0);
        for (const [n, value] of values.entries()) {
          for (let i = from; i < from + size; i++) mixed[i] += (weights[n] / total) * value[i];
        }
      }
      x = addProduct(x, mixed, w["attention_output.kernel"]);
      const hidden = product(layerNorm(x, w["mlp_norm.scale"], w["mlp_norm.bias"]), w["mlp_in.kernel"]).map(gelu);
      x = addProduct(x, hidden, w["mlp_out.kernel"]);
      return { keys, values, output: layerNorm(x, w["output_norm.scale"], w["output_norm.bias"]) };
    },
  });

  const network = (description, text) => {
    const w = decode(text, description.arrays);
    const torso = description.kind === "lstm" ? lstm(w) : transformer(w, description.heads);
    const [kernel, bias] = [w["unembedding.kernel"], w["unembedding.bias"]];
    // In the beginning every network reads a row of zeros, in token space.
    const embed = (row) => addProduct(Float64Array.from(w["embedding.bias"]), row, w["embedding.kernel"]);
    return {
      ...torso,
      embed,
      start: torso.read(torso.start, embed([0, 0])),
      heads: ({ output }) => {
        const [heads, tails] = addProduct(Float64Array.from(bias), output, kernel);
        return sigmoid(heads - tails);
      },
    };
  };

  // ---- Exact predictors: counts are all that they keep ------------------------------------------------------------

  const exact = ({ beta, biases, weights }) => ({
    start: [0, 0],
    embed: (row) => row,
    read: (counts, row) => plus(counts, row),
    heads: ([h, t]) => {
      if (beta) return (beta[0] + h) / (beta[0] + beta[1] + h + t);
      const joint = biases.map((bias, i) => Math.log(weights[i]) + h * Math.log(bias) + t * Math.log(1 - bias));
      const likely = joint.map((value) => Math.exp(value - Math.max(...joint)));
      const total = likely.reduce((sum, x) => sum + x, 0);
      return likely.reduce((sum, x, i) => sum + x * biases[i], 0) / total;
    },
  });

  // ---- Prompts -----------------------------------------------------------------------------------------------------

  const row = (token) => (token ? [0, 1] : [1, 0]);

  const normals = (seed) => {
    // Box and Muller on a generator of Marsaglia's, with shifts 13, 17, 5: the same noise on every machine
    let bits = (seed + 1) * 2654435761;
    const uniform = () => {
      bits ^= bits << 13;
      bits ^= bits >>> 17;
      bits ^= bits << 5;
      return ((bits >>> 0) + 0.5) / 2 ** 32;
    };
    for (let i = 0; i < 20; i++) uniform();
    return () => Math.sqrt(-2 * Math.log(uniform())) * Math.cos(2 * Math.PI * uniform());
  };

  // The state after a prompt as the reader has set it: its tokens; or rows between a neutral one, half heads and half
  // tails, and the tuned one, plus noise whose size is a share of the tuned rows' distance from the neutral one.
  const begin = (model, { tokens, inputs, embeddings, width }, { strength = 1, noise = 0, seed = 0 } = {}) => {
    let rows = (tokens ?? []).map((token) => model.embed(row(token)));
    if (inputs || embeddings) {
      const neutral = inputs ? [0.5, 0.5] : model.embed([0.5, 0.5]);
      const all = embeddings && floats(embeddings);
      const tuned = inputs ?? Array.from({ length: all.length / width }, (_, i) => all.subarray(i * width, (i + 1) * width));
      const far = tuned.flatMap((one) => Array.from(one, (x, i) => (x - neutral[i]) ** 2));
      const size = noise * Math.sqrt(far.reduce((sum, x) => sum + x, 0) / far.length);
      const draw = normals(seed);
      rows = tuned.map((one) => neutral.map((x, i) => x + strength * (one[i] - x) + (size && size * draw())));
      if (inputs) rows = rows.map(model.embed);
    }
    return rows.reduce(model.read, model.start);
  };

  // What a predictor says of the next flip, and the Beta belief that says the same of it and of the one after: a belief
  // Beta(a, b) moves by 1 / (a + b + 1) between one more head and one more tail. A predictor that moves the other way,
  // or not at all, has none; nor has one that moves by 1 or more.
  const look = (model, state) => {
    const next = [0, 1].map((token) => model.read(state, model.embed(row(token))));
    const [now, head, tail] = [state, ...next].map(model.heads);
    const strength = 1 / (head - tail) - 1;
    const belief = head > tail && strength > 0 && [now * strength, (1 - now) * strength];
    return { next, now, belief: belief || null };
  };

  // ---- Weights: in a notebook they lie in the data, on a page they are files, fetched when they are needed ----------

  const arrived = {};
  const load = (name, description) =>
    (arrived[name] ??= (async () => {
      if (!description.text) {
        await new Promise((resolve, reject) => {
          const script = Object.assign(document.createElement("script"), { src: description.file });
          script.onload = resolve;
          script.onerror = () => reject(new Error(`The weights ${description.file} could not be fetched.`));
          document.head.append(script);
        });
      }
      return network(description, description.text ?? globalThis.playWeights[name]);
    })().catch((error) => {
      delete arrived[name]; // so that another try is one
      throw error;
    }));
  const modelOf = async (data, { network: name, exact: prior }) => (name ? load(name, data.networks[name]) : exact(prior));

  globalThis.bayespromptPlay = { modelOf, begin, look };

  // ---- What the reader sees ----------------------------------------------------------------------------------------

  const MOST = 200;
  const DASHES = ["", "7 4", "2 3", "9 3 2 3"];
  const svg = (name, attributes, text = "") => {
    const made = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    made.textContent = text;
    return made;
  };
  const line = (x1, y1, x2, y2, more) => svg("line", { x1, y1, x2, y2, stroke: "currentColor", ...more });
  const path = (points, place, width = 2) =>
    svg("polyline", {
      points: points.map((point) => point.map((x) => x.toFixed(1)).join()).join(" "),
      fill: "none",
      stroke: `var(--c${place})`,
      "stroke-width": width,
      "stroke-dasharray": DASHES[place],
    });

  const start = (box) => {
    const data = JSON.parse(box.querySelector('script[type="application/json"]').textContent);
    const one = (selector, inside = box) => inside.querySelector(selector);
    const all = (selector, inside = box) => [...inside.querySelectorAll(selector)];
    const [flips, presses] = [[], []]; // tokens; how many each press added, for undo
    const probability = () => Math.min(0.99, Math.max(0.01, Number(one(".own").value) || 0.5));

    // ---- Four places for predictors ----
    const places = [0, 1, 2, 3].map((number) => {
      const seat = one("template").content.firstElementChild.cloneNode(true);
      const place = { number, seat, settings: { strength: 1, noise: 0, seed: 0 }, steps: [] };
      seat.style.setProperty("--colour", `var(--c${number})`);
      one(".hidden", seat).textContent = `Predictor ${number + 1}`;
      one(".sample", seat).append(line(0, 6, 32, 6, { stroke: `var(--c${number})`, "stroke-width": 3, "stroke-dasharray": DASHES[number] }));
      const select = one("select", seat);
      select.append(new Option("none", ""));
      for (const group of new Set(data.predictors.map((each) => each.group))) {
        const options = Object.assign(document.createElement("optgroup"), { label: group });
        for (const [i, each] of data.predictors.entries()) if (each.group === group) options.append(new Option(each.name, i));
        select.append(options);
      }
      select.value = data.first[number] ?? "";
      select.addEventListener("change", () => choose(place, true));
      for (const name of ["strength", "noise"]) {
        one(`.${name}`, seat).addEventListener("input", (event) => {
          place.settings[name] = event.target.value / 100;
          again(place);
        });
      }
      one(".draw", seat).addEventListener("click", () => {
        place.settings.seed += 1;
        again(place);
      });
      one(".seats").append(seat);
      return place;
    });

    const choose = async (place, said) => {
      const chosen = one("select", place.seat).value;
      const predictor = data.predictors[chosen];
      Object.assign(place, { predictor: null, steps: [], settings: { strength: 1, noise: 0, seed: 0 } });
      one(".rows", place.seat).hidden = one(".tokens", place.seat).hidden = true;
      if (predictor) {
        place.seat.setAttribute("aria-busy", "true");
        draw();
        try {
          const model = await modelOf(data, predictor);
          if (one("select", place.seat).value !== chosen) return; // another one was chosen meanwhile
          Object.assign(place, { model, predictor: { ...predictor, tokens: predictor.tokens && [...predictor.tokens] } });
        } catch (error) {
          say(error.message);
        }
        place.seat.removeAttribute("aria-busy");
      }
      showPrompt(place);
      again(place);
      if (said) say();
    };

    const showPrompt = ({ predictor, seat, settings }) => {
      one(".rows", seat).hidden = !(predictor?.inputs || predictor?.embeddings);
      one(".strength", seat).value = 100 * settings.strength;
      one(".noise", seat).value = 100 * settings.noise;
      const tokens = one(".tokens", seat);
      tokens.hidden = !predictor?.tokens;
      const buttons = (predictor?.tokens ?? []).map((token, i) => {
        const button = Object.assign(document.createElement("button"), { type: "button", textContent: "HT"[token] });
        button.setAttribute("aria-label", `prompt token ${i + 1}: ${["heads", "tails"][token]}`);
        button.addEventListener("click", () => {
          predictor.tokens[i] = 1 - predictor.tokens[i];
          const place = places.find((each) => each.seat === seat);
          showPrompt(place);
          again(place);
          one(`.tokens button:nth-of-type(${i + 1})`, seat).focus();
        });
        return button;
      });
      tokens.replaceChildren("prompt:", ...buttons);
    };

    // ---- Numbers: steps[n] is what a predictor says after n flips, and what the flips so far have cost it ----
    const again = (place) => {
      place.steps = [];
      const [strength, noise] = all("output", place.seat);
      const share = Math.round(100 * place.settings.strength);
      strength.textContent = { 0: "neutral", 100: "tuned" }[share] ?? `${share} %`;
      noise.textContent = place.settings.noise ? `${Math.round(100 * place.settings.noise)} %` : "none";
      one(".strength", place.seat).setAttribute("aria-valuetext", strength.textContent);
      one(".noise", place.seat).setAttribute("aria-valuetext", noise.textContent);
      update();
    };

    const update = () => {
      for (const place of places) {
        const { model, predictor, steps, settings } = place;
        if (!predictor) continue;
        steps.length = Math.min(steps.length, flips.length + 1);
        if (!steps.length) steps.push({ ...look(model, begin(model, predictor, settings)), loss: 0 });
        while (steps.length <= flips.length) {
          const [last, token] = [steps.at(-1), flips[steps.length - 1]];
          const loss = last.loss - Math.log(token ? 1 - last.now : last.now);
          steps.push({ ...look(model, last.next[token]), loss });
        }
      }
      draw();
    };

    // ---- Pictures and words ----
    const draw = () => {
      const heads = flips.filter((token) => !token).length;
      const [n, truth] = [flips.length, one(".truth").value];
      const bias = truth === "own" ? probability() : Number(truth);
      const oracle = -heads * Math.log(bias) - (n - heads) * Math.log(1 - bias);
      const present = places.filter(({ steps }) => steps.length);
      const least = Math.min(...present.map(({ steps }) => steps.at(-1).loss));
      one(".count").textContent = `${n} flip${n === 1 ? "" : "s"}, ${heads} head${heads === 1 ? "" : "s"}${n < MOST ? "" : ": as many as there can be"}`;
      for (const place of places) {
        const [step, seat] = [place.steps.at(-1), place.seat];
        const leads = n > 0 && step && step.loss <= least + 1e-9;
        one("legend", seat).textContent = `Predictor ${place.number + 1}${leads ? ", leads" : ""}`;
        one(".now", seat).textContent = step ? step.now.toFixed(3) : "–";
        one(".loss", seat).textContent = step ? step.loss.toFixed(2) : "–";
        one(".regret", seat).textContent = step ? (step.loss - oracle).toFixed(2).replace(/^-(0\.00)$/, "$1") : "–";
        one(".belief", seat).textContent = words(step?.belief);
        density(one(".density", seat), step?.belief, place.number);
      }
      curves(present);
    };

    const words = (belief) => {
      if (!belief) return "–";
      const [a, b] = belief;
      return a + b > 1e5 ? `the ${(a / (a + b)).toFixed(2)} coin` : `Beta(${a.toPrecision(3)}, ${b.toPrecision(3)})`.replace(/e\+\d/, "");
    };

    // The density over the bias, as high as its picture where it is highest.
    const density = (picture, belief, place) => {
      const [width, height] = [picture.clientWidth || 200, 52];
      const x = (bias) => 4 + bias * (width - 8);
      const parts = [line(x(0), height, x(1), height, { opacity: 0.5 })];
      for (const bias of [0, 0.2, 0.5, 0.8, 1]) {
        parts.push(line(x(bias), height, x(bias), height + 3, { opacity: 0.5 }));
        parts.push(svg("text", { x: x(bias), y: height + 16, "text-anchor": bias ? (bias === 1 ? "end" : "middle") : "start" }, bias));
      }
      if (belief) {
        const biases = Array.from({ length: 199 }, (_, i) => (i + 1) / 200);
        const [a, b] = belief;
        const log = (bias) => (a - 1) * Math.log(bias) + (b - 1) * Math.log(1 - bias);
        if (a > 1 && b > 1) biases.push((a - 1) / (a + b - 2)); // the peak, however narrow
        biases.sort((p, q) => p - q);
        const most = Math.max(...biases.map(log));
        parts.push(path(biases.map((bias) => [x(bias), height - (height - 4) * Math.exp(log(bias) - most)]), place));
      }
      picture.setAttribute("aria-label", belief ? `density of ${words(belief)} over the bias` : "no Beta belief");
      picture.replaceChildren(...parts);
    };

    const curves = (present) => {
      const picture = one(".curves");
      const [width, height] = [picture.clientWidth || 700, picture.clientHeight || 272];
      const margin = { left: 34, right: Math.min(190, width * 0.38), top: 26, bottom: 42 };
      const steps = Math.max(20, flips.length);
      const x = (n) => margin.left + (n / steps) * (width - margin.left - margin.right);
      const y = (p) => margin.top + (1 - p) * (height - margin.top - margin.bottom);
      const parts = [];
      for (const p of [0, 0.2, 0.5, 0.8, 1]) {
        parts.push(line(x(0), y(p), x(steps), y(p), { opacity: 0.25 }));
        parts.push(svg("text", { x: margin.left - 6, y: y(p) + 4, "text-anchor": "end" }, p));
      }
      for (const n of [0, steps / 4, steps / 2, (3 * steps) / 4, steps].map(Math.round)) {
        parts.push(svg("text", { x: x(n), y: y(0) + 22, "text-anchor": "middle" }, n));
      }
      parts.push(svg("text", { x: 0, y: 11 }, "P(heads)"));
      parts.push(svg("text", { x: x(steps / 2), y: height - 1, "text-anchor": "middle" }, "flips"));
      flips.forEach((token, i) => {
        const [at, from] = [x(i + 1), token ? y(0) : y(1)];
        parts.push(line(at, from, at, from + (token ? -6 : 6), { opacity: 0.8, "stroke-width": 1.5 }));
      });
      // Names at the ends of the curves, moved apart where they would meet.
      const names = present.map((place) => ({ place, at: y(place.steps.at(-1).now) })).sort((p, q) => p.at - q.at);
      names.forEach((name, i) => (name.at = Math.max(name.at, i ? names[i - 1].at + 15 : margin.top)));
      for (let i = names.length - 1, low = y(0); i >= 0; i--, low = names[i + 1].at - 15) names[i].at = Math.min(names[i].at, low);
      for (const { place, at } of names) {
        const end = [x(flips.length), y(place.steps.at(-1).now)];
        parts.push(path(place.steps.map(({ now }, n) => [x(n), y(now)]), place.number));
        parts.push(svg("circle", { cx: end[0], cy: end[1], r: 3.5, fill: `var(--c${place.number})` }));
        parts.push(line(end[0] + 5, end[1], x(steps) + 8, at, { stroke: `var(--c${place.number})`, opacity: 0.5 }));
        parts.push(svg("text", { x: x(steps) + 11, y: at + 4, style: `fill: var(--c${place.number})` }, short(place.predictor.name)));
      }
      picture.replaceChildren(...parts);
    };
    const short = (name) => name.replace("Transformer", "Tr.").replace(" untrained", " untr.").replace(" (quick)", "");

    // Said at most once in 1.2 seconds, and always the last state: somebody who listens is not to wait for the others.
    let [due, told] = [0, 0];
    const say = (problem) => {
      clearTimeout(due);
      due = setTimeout(() => {
        told = Date.now();
        const heads = flips.filter((token) => !token).length;
        const each = places.filter(({ steps }) => steps.length).map(({ predictor, steps }) => `${predictor.name} ${steps.at(-1).now.toFixed(2)}`);
        one(".says").textContent = problem ?? `After ${flips.length} flips, ${heads} of them heads, P(heads) is: ${each.join("; ")}.`;
      }, Math.max(0, told + 1200 - Date.now()));
    };

    // ---- What the reader does ----
    const add = (tokens) => {
      const added = tokens.slice(0, MOST - flips.length);
      if (!added.length) return;
      flips.push(...added);
      presses.push(added.length);
      update();
      say();
    };
    const ten = (coin) => {
      if (!flips.length && coin !== "turns") one(".truth").value = coin;
      const bias = coin === "own" ? probability() : Number(coin);
      add(Array.from({ length: 10 }, (_, i) => (coin === "turns" ? i % 2 : Number(Math.random() >= bias))));
    };
    const takeBack = (count) => {
      flips.length -= count;
      update();
      say();
    };
    for (const button of all("[data-flip]")) button.addEventListener("click", () => add([Number(button.dataset.flip)]));
    for (const button of all("[data-ten]")) button.addEventListener("click", () => ten(button.dataset.ten));
    one(".undo").addEventListener("click", () => takeBack(presses.pop() ?? 0));
    one(".clear").addEventListener("click", () => takeBack(presses.splice(0).reduce((sum, count) => sum + count, 0)));
    for (const field of [one(".truth"), one(".own")]) field.addEventListener("change", draw);
    document.addEventListener("keydown", (event) => {
      const [key, at] = [event.key.toLowerCase(), event.target];
      const types = at.matches("textarea, select, input:not([type=range], [type=checkbox])") || at.isContentEditable;
      if (!["h", "t"].includes(key) || types || event.ctrlKey || event.metaKey || event.altKey || !one(".keys").checked) return;
      if (!box.contains(at) && at !== document.body) return; // meant for something else on the page
      event.preventDefault();
      add([key === "h" ? 0 : 1]);
    });
    new ResizeObserver(draw).observe(one(".curves"));

    one(".live").hidden = false;
    one(".still img").loading = "eager"; // there when it is printed
    box.classList.add("alive");
    Promise.all(places.map((place) => choose(place))).then(() => say());
  };

  for (const box of document.querySelectorAll(".play:not(.alive)")) start(box);
})();
