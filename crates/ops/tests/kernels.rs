//! The CUDA kernels against the plain operations, on the CPU: their arithmetic, their barriers and their bounds. That broken ones are caught is tested, too.

mod cuda;

use std::collections::BTreeSet;

use candle_core::{DType, Device::Cpu, Result, Tensor, Var};
use layerwise_ops::{AdamWStep, Dropout, adamw_step, plain};
use layerwise_testkit::random;

use cuda::{Arg, Grid, Kernels, Outcome, TYPES, Type, can_compile, off};

/// A launch and what should come of its memory, by place among the arguments that are memory.
struct Case {
    name: String,
    grid: Grid,
    args: Vec<Arg>,
    want: Vec<(usize, Type, Vec<f32>)>,
}

impl Case {
    /// What is wrong with it, if anything is.
    fn wrong(&self, kernels: &Kernels) -> Option<String> {
        let name = &self.name;
        for reverse in [false, true] {
            let memory = match kernels.launch(name, self.grid, reverse, &self.args) {
                Outcome::Memory(memory) => memory,
                Outcome::Stopped(why) => return Some(format!("{name} stopped: {why}")),
            };
            for (at, of, want) in &self.want {
                let off = off(*of, &of.numbers(&memory[*at]), want);
                if off > 1. {
                    return Some(format!("{name} is off by {off} times its tolerance"));
                }
            }
        }
        None
    }
}

/// All cases hold, and of each of these changes of the source at least one does not.
fn check(file: &str, cases: &[Case], broken: &[(&str, &str)]) {
    if !can_compile() {
        return;
    }
    let names: BTreeSet<&str> = cases.iter().map(|case| case.name.as_str()).collect();
    let sound = Kernels::compiled(file, &names, None);
    let wrong: Vec<String> = cases.iter().filter_map(|case| case.wrong(&sound)).collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    for change in broken {
        let kernels = Kernels::compiled(file, &names, Some(*change));
        assert!(cases.iter().any(|case| case.wrong(&kernels).is_some()), "{file}: not caught: {change:?}");
    }
}

fn values(xs: &Tensor) -> Result<Vec<f32>> {
    xs.flatten_all()?.to_vec1()
}

/// Random numbers of a type.
fn numbers(of: Type, seed: u64, dims: &[usize]) -> Result<Tensor> {
    Tensor::from_vec(of.rounded(&values(&random(seed, dims))?), dims, &Cpu)
}

#[test]
fn layer_norm() -> Result<()> {
    let mut cases = Vec::new();
    for of in TYPES {
        for (rows, width) in [(1, 1), (5, 7), (9, 33), (37, 100), (3, 384)] {
            let x = Var::from_tensor(&(numbers(of, 1, &[rows, width])? + 2.)?)?;
            let x = Var::from_vec(of.rounded(&values(&x)?), &[rows, width], &Cpu)?;
            let (w, b) = (
                Var::from_tensor(&numbers(of, 2, &[width])?)?,
                Var::from_tensor(&numbers(of, 3, &[width])?)?,
            );
            let g = numbers(of, 4, &[rows, width])?;
            let y = plain::layer_norm(&x, &w, &b, 1e-5)?;
            let gradients = (&y * &g)?.sum_all()?.backward()?;
            let gradient = |xs: &Var| values(gradients.get(xs).expect("a gradient"));
            let moments: Vec<f32> = values(&x)?
                .chunks(width)
                .flat_map(|row| {
                    let mean = row.iter().map(|&x| f64::from(x)).sum::<f64>() / width as f64;
                    let squares = row.iter().map(|&x| (f64::from(x) - mean).powi(2)).sum::<f64>();
                    [mean as f32, (1. / (squares / width as f64 + 1e-5).sqrt()) as f32]
                })
                .collect();
            let memory = |xs: &Tensor| Ok::<_, candle_core::Error>(Arg::numbers(of, &values(xs)?));
            let (of_rows, of_width, eps) = (Arg::Long(rows as u64), Arg::Int(width as i32), Arg::Float(1e-5));
            let warps = Grid { blocks: (rows.div_ceil(4), 1), threads: (128, 1) };
            cases.push(Case {
                name: of.kernel("layer_norm"),
                grid: warps,
                args: vec![
                    memory(&x)?,
                    memory(&w)?,
                    memory(&b)?,
                    Arg::room(of, rows * width),
                    of_rows,
                    of_width,
                    eps,
                ],
                want: vec![(3, of, values(&y)?)],
            });
            let room = [Arg::room(of, rows * width), Arg::room(Type::F32, 2 * rows)];
            let [dx, stats] = room;
            cases.push(Case {
                name: of.kernel("layer_norm_dx"),
                grid: warps,
                args: vec![
                    memory(&x)?,
                    memory(&w)?,
                    memory(&g)?,
                    dx,
                    stats,
                    Arg::Long(rows as u64),
                    Arg::Int(width as i32),
                    Arg::Float(1e-5),
                ],
                want: vec![(3, of, gradient(&x)?), (4, Type::F32, moments.clone())],
            });
            // Of one part, which is the whole, and of three.
            let (x, g) = (values(&x)?, values(&g)?);
            for parts in [1, 3] {
                let mut sums = vec![0f32; parts * 2 * width];
                let each = rows.div_ceil(parts);
                for row in 0..rows {
                    for column in 0..width {
                        let g = g[row * width + column];
                        let normed = (x[row * width + column] - moments[2 * row]) * moments[2 * row + 1];
                        sums[row / each * 2 * width + column] += g * normed;
                        sums[(row / each * 2 + 1) * width + column] += g;
                    }
                }
                cases.push(Case {
                    name: of.kernel("layer_norm_sums"),
                    grid: Grid { blocks: (width.div_ceil(32), parts), threads: (32, 8) },
                    args: vec![
                        Arg::numbers(of, &x),
                        Arg::numbers(of, &g),
                        Arg::numbers(Type::F32, &moments),
                        Arg::room(Type::F32, sums.len()),
                        Arg::Long(rows as u64),
                        Arg::Int(width as i32),
                    ],
                    want: vec![(3, Type::F32, sums)],
                });
            }
        }
    }
    let broken = [
        ("if (row >= rows) return;\n  x += row * width, y", "x += row * width, y"),
        ("__syncthreads();\n  if (threadIdx.y > 0", "if (threadIdx.y > 0"),
        ("lanes > 0", "lanes > 1"),
        ("- sum - normed * along", "- sum"),
        ("i < 8; ++i", "i < 7; ++i"),
        ("first = blockIdx.y * part", "first = 0"),
    ];
    check("layer_norm.cu", &cases, &broken);
    Ok(())
}

#[test]
fn column_sums() -> Result<()> {
    let mut cases = Vec::new();
    for of in TYPES {
        for (rows, width, parts) in [(1, 1, 1), (9, 33, 1), (37, 100, 3), (100, 64, 8)] {
            let xs = values(&numbers(of, 1, &[rows, width])?)?;
            let mut sums = vec![0f32; parts * width];
            for (row, xs) in xs.chunks(width).enumerate() {
                let of_part = &mut sums[row / rows.div_ceil(parts) * width..][..width];
                of_part.iter_mut().zip(xs).for_each(|(sum, x)| *sum += x);
            }
            cases.push(Case {
                name: of.kernel("column_sums"),
                grid: Grid { blocks: (width.div_ceil(32), parts), threads: (32, 8) },
                args: vec![
                    Arg::numbers(of, &xs),
                    Arg::room(Type::F32, sums.len()),
                    Arg::Long(rows as u64),
                    Arg::Int(width as i32),
                ],
                want: vec![(1, Type::F32, sums)],
            });
        }
    }
    let broken = [
        ("if (column < width)\n    for", "for"),
        ("  __syncthreads();\n", ""),
        ("threadIdx.y > 0 || column >= width", "threadIdx.y > 0"),
        ("i < 8; ++i", "i < 7; ++i"),
        ("first = blockIdx.y * part", "first = 0"),
        ("row += 8", "row += 4"),
    ];
    check("columns.cu", &cases, &broken);
    Ok(())
}

#[test]
fn dropout() -> Result<()> {
    let config = Dropout { p: 0.3, seed: 0x1234_5678_9abc };
    let mut cases = Vec::new();
    for of in TYPES {
        for count in [1, 77, 1500] {
            let x = numbers(of, 1, &[count])?;
            cases.push(Case {
                name: of.kernel("dropout"),
                grid: Grid { blocks: (2, 1), threads: (256, 1) },
                args: vec![
                    Arg::numbers(of, &values(&x)?),
                    Arg::room(of, count),
                    Arg::Long(count as u64),
                    Arg::Long(config.seed),
                    Arg::Long((f64::from(config.p) * 2f64.powi(32)) as u64),
                    Arg::Float(1. / (1. - config.p)),
                ],
                want: vec![(1, of, values(&plain::dropout(&x, config)?)?)],
            });
        }
    }
    let broken =
        [(">= keep.dropped", "< keep.dropped"), ("z >> 27", "z >> 26"), ("i < count", "i + 1 < count")];
    check("dropout.cu", &cases, &broken);
    Ok(())
}

/// Scores of attention and what is seen of them.
struct Scores {
    samples: usize,
    heads: usize,
    queries: usize,
    keys: usize,
    causal: bool,
    mask: Option<Vec<u8>>,
    dropout: Option<Dropout>,
}

impl Scores {
    fn rows(&self) -> usize {
        self.samples * self.heads * self.queries
    }

    fn args(&self, first: usize, scale: f32) -> Vec<Arg> {
        let mask = self.mask.clone().map_or_else(Arg::null, Arg::Memory);
        let Dropout { p, seed } = self.dropout.unwrap_or(Dropout { p: 0., seed: 0 });
        let sizes = [self.keys, self.queries, self.heads].map(|size| Arg::Int(size as i32));
        let dropped = (f64::from(p) * 2f64.powi(32)) as u64;
        [mask]
            .into_iter()
            .chain(sizes)
            .chain([
                Arg::Int(self.causal.into()),
                Arg::Long(first as u64),
                Arg::Float(scale),
                Arg::Long(seed),
                Arg::Long(dropped),
                Arg::Float(1. / (1. - p)),
            ])
            .collect()
    }

    /// Probabilities by single operations, before and after dropout.
    fn probabilities(&self, scores: &Tensor, scale: f32) -> Result<[Tensor; 2]> {
        let Self { samples, heads, queries, keys, .. } = *self;
        let seen = |row: usize, key: usize| {
            let (sample, query) = (row / queries / heads, row % queries);
            let masked = self.mask.as_ref().is_some_and(|mask| mask[sample * keys + key] == 0);
            !(masked || self.causal && key > query + keys - queries)
        };
        let at = |f: &dyn Fn(bool, bool) -> f32| -> Result<Tensor> {
            let rows = (0..self.rows()).flat_map(|row| {
                let none = !(0..keys).any(|key| seen(row, key));
                (0..keys).map(move |key| (row, key, none))
            });
            Tensor::from_iter(rows.map(|(row, key, none)| f(seen(row, key), none)), &Cpu)?
                .reshape((self.rows(), keys))
        };
        // Of a row that sees nothing any softmax will do: it is zeroed.
        let hidden = at(&|seen, none| if seen || none { 0. } else { f32::NEG_INFINITY })?;
        let kept = at(&|seen, _| f32::from(seen))?;
        let p = (plain::softmax(&((scores * f64::from(scale))? + hidden)?)? * kept)?;
        assert_eq!(samples * heads * queries * keys, p.elem_count());
        let dropped = match self.dropout {
            Some(dropout) => plain::dropout(&p, dropout)?,
            None => p.clone(),
        };
        Ok([p, dropped])
    }
}

#[test]
fn softmax() -> Result<()> {
    let dropout = Some(Dropout { p: 0.4, seed: 99 });
    let plain = |rows, keys| Scores {
        samples: 1,
        heads: 1,
        queries: rows,
        keys,
        causal: false,
        mask: None,
        dropout: None,
    };
    let padded: Vec<u8> = [[1; 45].as_slice(), &[0; 25], &[0; 70], &[1; 1], &[0; 69]].concat();
    let all = [
        plain(3, 1),
        plain(4, 300),
        Scores { samples: 2, heads: 2, causal: true, ..plain(9, 9) },
        Scores { samples: 1, heads: 3, causal: true, dropout, ..plain(5, 40) },
        Scores { samples: 3, heads: 2, mask: Some(padded), dropout, ..plain(4, 70) },
    ];
    let mut cases = Vec::new();
    for of in TYPES {
        for of_scores in &all {
            let (rows, keys, scale) = (of_scores.rows(), of_scores.keys, 0.3);
            let raw = Var::from_tensor(&(random(5, &[rows, keys]) * 6.)?)?;
            let g = random(6, &[rows, keys]);
            let [_, dropped] = of_scores.probabilities(&raw, scale)?;
            let gradients = (&dropped * &g)?.sum_all()?.backward()?;
            let gradient = gradients.get(&raw).expect("a gradient").clone();
            // All rows, and the second half of them alone.
            for first in [0, rows / 2] {
                let grid = Grid { blocks: (rows - first, 1), threads: (if keys > 64 { 128 } else { 32 }, 1) };
                let rest = |xs: &Tensor| values(&xs.narrow(0, first, rows - first)?);
                let memory = |xs: &Tensor| Ok::<_, candle_core::Error>(Arg::numbers(Type::F32, &rest(xs)?));
                let room = || Arg::room(of, (rows - first) * keys);
                let args =
                    |arrays: Vec<Arg>| arrays.into_iter().chain(of_scores.args(first, scale)).collect();
                cases.push(Case {
                    name: of.kernel("probabilities"),
                    grid,
                    args: args(vec![memory(&raw)?, room()]),
                    want: vec![(1, of, rest(&dropped)?)],
                });
                cases.push(Case {
                    name: of.kernel("probabilities_dx"),
                    grid,
                    args: args(vec![memory(&raw)?, memory(&g)?, room()]),
                    want: vec![(2, of, rest(&gradient)?)],
                });
            }
        }
        let x = (random(7, &[5, 130]) * 5.)?;
        let x = Tensor::from_vec(of.rounded(&values(&x)?), (5, 130), &Cpu)?;
        let p = Tensor::from_vec(of.rounded(&values(&plain::softmax(&x)?)?), (5, 130), &Cpu)?;
        let g = numbers(of, 8, &[5, 130])?;
        let dx = (&p * g.broadcast_sub(&(&p * &g)?.sum_keepdim(1)?)?)?;
        let memory = |xs: &Tensor| Ok::<_, candle_core::Error>(Arg::numbers(of, &values(xs)?));
        let grid = Grid { blocks: (5, 1), threads: (64, 1) };
        let args = vec![memory(&x)?, Arg::room(of, 5 * 130), Arg::Int(130)];
        let want = vec![(1, of, values(&plain::softmax(&x)?)?)];
        cases.push(Case { name: of.kernel("softmax"), grid, args, want });
        let args = vec![memory(&p)?, memory(&g)?, Arg::room(of, 5 * 130), Arg::Int(130)];
        cases.push(Case { name: of.kernel("softmax_dx"), grid, args, want: vec![(2, of, values(&dx)?)] });
    }
    let broken = [
        ("__syncthreads();\n  if (threadIdx.x % 32 == 0) warps", "if (threadIdx.x % 32 == 0) warps"),
        ("warps[threadIdx.x / 32] = x;\n  __syncthreads();", "warps[threadIdx.x / 32] = x;"),
        ("key > query + of.keys - of.queries", "key > query"),
        ("row / of.queries / of.heads", "row / of.queries"),
        ("of.first + blockIdx.x, at", "blockIdx.x, at"),
        ("of.first + blockIdx.x;", "blockIdx.x;"),
        ("* drop(of, row, key) - along", "* drop(of, row, key)"),
        ("* drop(of, row, key);\n  along", ";\n  along"),
        ("max = of_block<Max>(max, -INFINITY);", "max = of_block<Max>(max, -INFINITY) - 200.f;"),
        ("expf(wide(x[i]) - max) / sum", "expf(wide(x[i]) - max)"),
    ];
    check("softmax.cu", &cases, &broken);
    Ok(())
}

#[test]
fn activations() -> Result<()> {
    type Plain = fn(&Tensor) -> Result<Tensor>;
    let all: [(&str, &str, Plain); 4] = [
        ("gelu", "gelu_dx", plain::gelu),
        ("gelu_tanh", "gelu_tanh_dx", plain::gelu_tanh),
        ("relu", "relu_dx", Tensor::relu),
        ("silu", "silu_dx", Tensor::silu),
    ];
    let mut cases = Vec::new();
    for of in TYPES {
        let (x, b) = (numbers(of, 4, &[3, 50])?, numbers(of, 5, &[50])?);
        cases.push(Case {
            name: of.kernel("identity"),
            grid: Grid { blocks: (2, 1), threads: (64, 1) },
            args: vec![
                Arg::numbers(of, &values(&x)?),
                Arg::numbers(of, &values(&b)?),
                Arg::room(of, 150),
                Arg::Long(150),
                Arg::Int(50),
            ],
            want: vec![(2, of, values(&x.broadcast_add(&b)?)?)],
        });
        for (forward, backward, plain) in all {
            for (rows, width, biased) in [(3, 50, true), (1, 1, false), (7, 90, false)] {
                let x = (random(1, &[rows, width]) * 3.)?;
                let x = Tensor::from_vec(of.rounded(&values(&x)?), (rows, width), &Cpu)?;
                let (b, g) = (numbers(of, 2, &[width])?, numbers(of, 3, &[rows, width])?);
                let shifted = if biased { x.broadcast_add(&b)? } else { x.clone() }.to_dtype(DType::F64)?;
                let y = plain(&shifted)?.to_dtype(DType::F32)?;
                // candle's own derivative of GELU has a constant of six digits.
                let step = 1e-5;
                let slope = ((plain(&(&shifted + step)?)? - plain(&(&shifted - step)?)?)? / (2. * step))?;
                let dx = values(&(slope.to_dtype(DType::F32)? * &g)?)?;
                let memory = |xs: &Tensor| Ok::<_, candle_core::Error>(Arg::numbers(of, &values(xs)?));
                let bias = || if biased { memory(&b) } else { Ok(Arg::null()) };
                let sizes = || [Arg::Long((rows * width) as u64), Arg::Int(width as i32)];
                let grid = Grid { blocks: (2, 1), threads: (64, 1) };
                let args =
                    [memory(&x)?, bias()?, Arg::room(of, rows * width)].into_iter().chain(sizes()).collect();
                cases.push(Case { name: of.kernel(forward), grid, args, want: vec![(2, of, values(&y)?)] });
                let args = [memory(&x)?, bias()?, memory(&g)?, Arg::room(of, rows * width)];
                let args = args.into_iter().chain(sizes()).collect();
                cases.push(Case { name: of.kernel(backward), grid, args, want: vec![(3, of, dx)] });
            }
        }
    }
    let broken = [
        (".044715f", ".04471f"),
        ("i % width", "i / width"),
        (".134145f", ".13f"),
        ("(1.f - s)", "s"),
        (".3989422804014327f", ".4f"),
    ];
    check("activation.cu", &cases, &broken);
    Ok(())
}

/// What a row of logits says of its target, and `weight` times the derivatives by them, in f64.
fn said(z: &[f32], target: usize, weight: f32, smoothing: f64) -> ([f64; 5], Vec<f32>) {
    let z: Vec<f64> = z.iter().map(|&x| f64::from(x)).collect();
    let max = z.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let sum: f64 = z.iter().map(|x| (x - max).exp()).sum();
    let p: Vec<f64> = z.iter().map(|x| (x - max).exp() / sum).collect();
    let log = |i: usize| z[i] - max - sum.ln();
    let count = z.len() as f64;
    let wanted = |i: usize| (if i == target { 1. - smoothing } else { 0. }) + smoothing / count;
    let loss: f64 = (0..z.len()).map(|i| -wanted(i) * log(i)).sum();
    let answer = z.iter().position(|&x| x == max).expect("a largest");
    let second = (0..z.len()).filter(|&i| i != answer).map(|i| p[i]).fold(0., f64::max);
    let entropy: f64 = (0..z.len()).map(|i| if p[i] > 0. { -p[i] * log(i) } else { 0. }).sum();
    let says = [loss, f64::from(u8::from(answer == target)), p[answer], p[answer] - second, entropy];
    let derivative = |i: usize| (f64::from(weight) * (p[i] - wanted(i))) as f32;
    (says, (0..z.len()).map(derivative).collect())
}

#[test]
fn cross_entropy() -> Result<()> {
    let mut cases = Vec::new();
    for of in TYPES {
        for (rows, classes, threads, smoothing) in [(3, 2, 32, 0.), (4, 301, 128, 0.1), (5, 77, 64, 0.)] {
            let mut z = values(&((random(1, &[rows, classes]) * 4.)? + 30.)?)?;
            // Two largest of one size.
            z[classes] = 60.;
            z[classes + 1] = 60.;
            let mut bias = of.rounded(&values(&random(2, &[classes]))?);
            bias[1] = bias[0];
            let targets: Vec<u32> =
                (0..rows as u32).map(|row| if row == 1 { 1 } else { row * 7 % classes as u32 }).collect();
            let mut weights: Vec<f32> = (0..rows).map(|row| 0.5 + row as f32).collect();
            // The last counts nothing, and is nothing.
            weights[rows - 1] = 0.;
            z[(rows - 1) * classes..].fill(f32::NAN);
            for (biased, learns) in [(true, true), (false, true), (true, false)] {
                let (mut says, mut derivatives) = (Vec::new(), Vec::new());
                for (row, z) in z.chunks(classes).enumerate() {
                    let z: Vec<f32> =
                        z.iter().zip(&bias).map(|(z, b)| z + if biased { *b } else { 0. }).collect();
                    if weights[row] == 0. {
                        says.extend([0.; 5]);
                        derivatives.extend(vec![0.; classes]);
                        continue;
                    }
                    let (of_row, by) = said(&z, targets[row] as usize, weights[row], smoothing);
                    says.extend(of_row.map(|x| x as f32));
                    derivatives.extend(by);
                }
                let learned = learns.then_some((2, of, derivatives));
                cases.push(Case {
                    name: of.kernel("cross_entropy"),
                    grid: Grid { blocks: (rows, 1), threads: (threads, 1) },
                    args: vec![
                        Arg::numbers(Type::F32, &z),
                        if biased { Arg::numbers(of, &bias) } else { Arg::null() },
                        if learns { Arg::room(of, z.len()) } else { Arg::null() },
                        Arg::ids(&targets),
                        Arg::numbers(Type::F32, &weights),
                        Arg::room(Type::F32, 5 * rows),
                        Arg::Int(classes as i32),
                        Arg::Float(smoothing as f32),
                    ],
                    want: [(5, Type::F32, says)].into_iter().chain(learned).collect(),
                });
            }
        }
    }
    for of in TYPES {
        for (rows, classes, threads) in [(3, 2, 32), (6, 301, 128)] {
            let mut z = values(&numbers(of, 3, &[rows, classes])?)?;
            z[classes..classes + 2].fill(4.);
            if classes > threads {
                // Another for the same thread.
                z[classes + threads] = 4.;
            }
            let bad = [f32::INFINITY, f32::NEG_INFINITY, f32::NAN];
            for (row, bad) in z.chunks_mut(classes).skip(2).zip(bad) {
                row[classes - 1] = bad;
            }
            let mut says = Vec::new();
            for (row, z) in z.chunks(classes).enumerate() {
                let answer = (0..classes).fold(0, |best, i| if z[i] > z[best] { i } else { best });
                let (of_row, _) = said(z, answer, 1., 0.);
                let sure =
                    of_row[2..].iter().map(|&x| if (2..5).contains(&row) { f32::NAN } else { x as f32 });
                says.push(answer as f32);
                says.extend(sure);
            }
            cases.push(Case {
                name: of.kernel("certainty"),
                grid: Grid { blocks: (rows, 1), threads: (threads, 1) },
                args: vec![Arg::numbers(of, &z), Arg::room(Type::F32, 4 * rows), Arg::Int(classes as i32)],
                want: vec![(1, Type::F32, says)],
            });
        }
    }
    // Sums over the rows of three exits.
    for rows in [1, 300] {
        let says = values(&random(4, &[3 * rows, 5]))?;
        let weights = values(&random(5, &[rows]).abs()?)?;
        let mut sums = [[0f64; 5]; 3];
        for (row, says) in says.chunks(5).enumerate().filter(|(row, _)| weights[row % rows] != 0.) {
            let add =
                |(sum, said): (&mut f64, &f32)| *sum += f64::from(*said) * f64::from(weights[row % rows]);
            sums[row / rows].iter_mut().zip(says).for_each(add);
        }
        cases.push(Case {
            name: "sum_up".into(),
            grid: Grid { blocks: (3, 1), threads: (256, 1) },
            args: vec![
                Arg::numbers(Type::F32, &says),
                Arg::numbers(Type::F32, &weights),
                Arg::room(Type::F64, 15),
                Arg::Long(rows as u64),
            ],
            want: vec![(2, Type::F64, sums.as_flattened().iter().map(|&sum| sum as f32).collect())],
        });
    }
    let broken = [
        ("if (weight == 0.f) {", "if (false) {"),
        ("half = 128; half > 0", "half = 128; half > 1"),
        ("    __syncthreads();\n    if (threadIdx.x < half)", "    if (threadIdx.x < half)"),
        ("  max = of_block<Max>(max, -INFINITY);\n", ""),
        ("if (x < max) second", "second"),
        ("row.first == target", "z(target) == row.max"),
        ("last = fmaxf(last, -(float)i)", "last = -(float)i"),
        ("z(i) * 0.f", "0.f"),
        ("says += 4 *", "says += 5 *"),
        ("peaks > 1.f ? 0.f : ", ""),
        ("smoothing / classes +", ""),
        ("? 1.f - smoothing : 0.f", "? 1.f : 0.f"),
        ("weight * (expf", "(expf"),
        ("(bias ? wide(bias[i]) : 0.f)", "0.f"),
        ("if (!to) return;", ""),
        ("says += 5 *", "says += 4 *"),
    ];
    check("cross_entropy.cu", &cases, &broken);
    Ok(())
}

/// A table with pointers in it.
#[derive(Default)]
struct Table {
    bytes: Vec<u8>,
    pointers: Vec<(usize, usize)>,
}

impl Table {
    /// To what stands at this place among the arguments.
    fn point(&mut self, to: usize) {
        self.pointers.push((self.bytes.len(), to));
        self.bytes.extend([0; 8]);
    }

    fn add<const N: usize>(&mut self, bytes: [u8; N]) {
        self.bytes.extend(bytes);
    }
}

/// Sizes of tensors that share a launch, and the first block of each; all blocks.
fn in_one_launch() -> (Vec<(usize, u32)>, usize) {
    let mut blocks = 0;
    let sizes = [300, 1, 9000, 4096, 4097].into_iter();
    let sizes = sizes.map(|count: usize| {
        let first = blocks;
        blocks += count.div_ceil(4096);
        (count, first as u32)
    });
    let sizes = sizes.collect();
    (sizes, blocks)
}

#[test]
fn adamw() -> Result<()> {
    let (sizes, blocks) = in_one_launch();
    // Types of the gradient, and of the rounded copy, one after the other.
    let kinds = |i: usize| (TYPES[i % 3], TYPES[(i + i / 3) % 3]);
    let mut args = Vec::new();
    let (mut table, mut want) = (Table::default(), Vec::new());
    for (i, &(count, first)) in sizes.iter().enumerate() {
        let by = AdamWStep {
            lr: 0.01 * (i + 1) as f64,
            beta1: 0.9,
            beta2: 0.99,
            eps: 1e-8,
            weight_decay: 0.1 * i as f64,
            step: i + 1,
            gradient_scale: 0.5,
        };
        let (of_gradient, of_copy) = kinds(i);
        let seed = 10 * i as u64;
        let [p, m] = [1, 2].map(|place| random(seed + place, &[count]));
        let (v, g) = (random(seed + 3, &[count]).abs()?, numbers(of_gradient, seed + 4, &[count])?);
        let [p, m, v] = [p, m, v].map(|xs| Var::from_tensor(&xs));
        let (p, m, v) = (p?, m?, v?);
        let held = |of: Type, xs: &Tensor| match Arg::numbers(of, &values(xs)?) {
            Arg::Memory(bytes) => Ok::<_, candle_core::Error>(Arg::Held(bytes)),
            other => Ok(other),
        };
        let f32 = Type::F32;
        let at = args.len();
        args.extend([held(f32, &p)?, held(f32, &m)?, held(f32, &v)?, held(of_gradient, &g)?]);
        (0..4).for_each(|place| table.point(at + place));
        // The second has no copy.
        if i == 1 {
            table.add([0; 8]);
        } else {
            table.point(args.len());
            args.push(held(of_copy, &p.zeros_like()?)?);
        }
        table.add((count as u64).to_le_bytes());
        table.add(first.to_le_bytes());
        for of in [of_gradient, of_copy] {
            let code = TYPES.iter().position(|other| *other == of).expect("a type") as u32;
            table.add(code.to_le_bytes());
        }
        let correction = |beta: f64| 1. / (1. - beta.powi(by.step as i32));
        let of_step = [
            by.gradient_scale,
            1. - by.lr * by.weight_decay,
            by.lr * correction(by.beta1),
            correction(by.beta2),
            by.beta1,
            by.beta2,
            1. - by.beta1,
            1. - by.beta2,
            by.eps,
        ];
        of_step.into_iter().for_each(|x| table.add((x as f32).to_le_bytes()));
        adamw_step(&p, &g, &m, &v, by)?;
        for (place, xs) in [&p, &m, &v].into_iter().enumerate() {
            want.push((at + place, f32, values(xs)?));
        }
        if i != 1 {
            want.push((at + 4, of_copy, of_copy.rounded(&values(&p)?)));
        }
    }
    args.push(Arg::Table(table.bytes, table.pointers));
    args.push(Arg::Int(sizes.len() as i32));
    let grid = Grid { blocks: (blocks, 1), threads: (256, 1) };
    let cases = [Case { name: "adamw".into(), grid, args, want }];
    let broken = [
        ("min(first + PART, of.count)", "first + PART"),
        ("first + PART", "first + PART - 1"),
        ("(blockIdx.x - of.first)", "blockIdx.x"),
        ("of.p[i] * of.keep", "of.p[i]"),
        ("v * of.correction", "v"),
        ("of.fresh2 * g * g", "of.fresh2 * g"),
        ("if (copy) put", "put"),
        ("case BF16: return step<G, bf16>(of);", ""),
        ("case F16: return step_of<f16>(of);", ""),
        ("<= blockIdx.x", "< blockIdx.x"),
    ];
    check("optimiser.cu", &cases, &broken);
    Ok(())
}

#[test]
fn sums_of_squares() -> Result<()> {
    let (sizes, blocks) = in_one_launch();
    let (mut args, mut table, mut want) = (Vec::new(), Table::default(), Vec::new());
    for (i, &(count, first)) in sizes.iter().enumerate() {
        let of = TYPES[i % 3];
        let xs = values(&numbers(of, i as u64, &[count])?)?;
        table.point(i);
        table.add((count as u64).to_le_bytes());
        table.add(first.to_le_bytes());
        table.add((i as u32 % 3).to_le_bytes());
        let squares = |part: &[f32]| part.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>() as f32;
        want.extend(xs.chunks(4096).map(squares));
        let Arg::Memory(bytes) = Arg::numbers(of, &xs) else { continue };
        args.push(Arg::Held(bytes));
    }
    args.push(Arg::Table(table.bytes, table.pointers));
    args.push(Arg::room(Type::F64, blocks));
    args.push(Arg::Int(sizes.len() as i32));
    let grid = Grid { blocks: (blocks, 1), threads: (256, 1) };
    let want = vec![(sizes.len(), Type::F64, want)];
    let cases = [Case { name: "sums_of_squares".into(), grid, args, want }];
    let broken = [
        ("half = 128; half > 0", "half = 128; half > 1"),
        ("    __syncthreads();\n    if (threadIdx.x < half) all", "    if (threadIdx.x < half) all"),
        ("of.type == BF16 ?", "of.type == F32 ?"),
        ("* wide(values[i]);", ";"),
    ];
    check("optimiser.cu", &cases, &broken);
    Ok(())
}

#[test]
fn rows() -> Result<()> {
    let mut cases = Vec::new();
    for of in TYPES {
        for (count, width, threads) in [(1, 1, 32), (9, 70, 32), (5, 300, 320)] {
            let xs = values(&numbers(of, 1, &[count, width])?)?;
            // The last is none of the rows.
            let picked: Vec<u32> = [0, count as u32 - 1, 0, count as u32 / 2, count as u32].into();
            let row = |&row: &u32| match xs.chunks(width).nth(row as usize) {
                Some(row) => row.to_vec(),
                None => vec![f32::NAN; width],
            };
            cases.push(Case {
                name: of.kernel("pick"),
                grid: Grid { blocks: (picked.len(), 1), threads: (threads, 1) },
                args: vec![
                    Arg::numbers(of, &xs),
                    Arg::ids(&picked),
                    // Not NaN, which is what the last has to become.
                    Arg::numbers(of, &vec![7.; picked.len() * width]),
                    Arg::Long(count as u64),
                    Arg::Long(width as u64),
                ],
                want: vec![(2, of, picked.iter().flat_map(row).collect())],
            });
            // Gradients of six places, by id: 1 and 4 are nobody's.
            let ids: [(u32, &[u32]); 3] = [(0, &[1, 4]), (2, &[0]), (3, &[2, 3, 5])];
            let g = values(&numbers(of, 2, &[6, width])?)?;
            let mut sums = vec![0f32; 5 * width];
            let (mut starts, mut order) = (vec![0u32], Vec::new());
            for (id, places) in ids {
                for &place in places {
                    for i in 0..width {
                        sums[id as usize * width + i] += g[place as usize * width + i];
                    }
                }
                order.extend(places);
                starts.push(order.len() as u32);
            }
            cases.push(Case {
                name: of.kernel("add_up"),
                grid: Grid { blocks: (ids.len(), 1), threads: (threads, 1) },
                args: vec![
                    Arg::numbers(of, &g),
                    Arg::ids(&ids.map(|(id, _)| id)),
                    Arg::ids(&starts),
                    Arg::ids(&order),
                    Arg::numbers(of, &vec![0.; 5 * width]),
                    Arg::Long(width as u64),
                ],
                want: vec![(4, of, sums)],
            });
        }
    }
    let broken = [
        ("if (row < count)", "if (true)"),
        ("xs += row * width", "xs += row"),
        ("starts[blockIdx.x + 1]", "starts[blockIdx.x] + 1"),
        ("order[at] * width", "at * width"),
        ("rows[blockIdx.x] * width;\n  u32", "blockIdx.x * width;\n  u32"),
        ("i += blockDim.x) {\n    float", "i += blockDim.x + 1) {\n    float"),
    ];
    check("rows.cu", &cases, &broken);
    Ok(())
}
