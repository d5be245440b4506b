//! Learning rates over a run, against PyTorch's schedulers.

use layerwise_train::Schedule;

fn factors(schedule: &Schedule, steps: usize) -> Vec<f64> {
    (0..steps).map(|step| schedule.factor(step, steps)).collect()
}

/// Both compute in f64, PyTorch's chained schedulers by repeated multiplication.
fn assert_close(got: &[f64], want: &[f64]) {
    assert_eq!(got.len(), want.len());
    assert!(got.iter().zip(want).all(|(a, b)| (a - b).abs() < 1e-14), "{got:?} instead of {want:?}");
}

#[test]
fn constant_is_one() {
    assert_eq!(factors(&Schedule::Constant, 3), [1.; 3]);
}

/// Equivalent Python: `get_linear_schedule_with_warmup(o, 4, 10)`'s lambda at 1, 2, 3, 4, 4, 5, .. 9.
#[test]
fn linear_equals_transformers_but_for_its_first_step() {
    let want = [0.25, 0.5, 0.75, 1., 1., 5. / 6., 4. / 6., 3. / 6., 2. / 6., 1. / 6.];
    assert_close(&factors(&Schedule::WarmupLinear { warmup: 0.4 }, 10), &want);
    assert_close(&factors(&Schedule::WarmupLinear { warmup: 0. }, 4), &[1., 0.75, 0.5, 0.25]);
    assert_eq!(factors(&Schedule::WarmupLinear { warmup: 1. }, 2), [0.5, 1.]);
}

/// Equivalent Python:
///
/// ```python
/// for total in (1, 2, 3, 4, 10, 11):
///     o = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0, momentum=0.9)
///     s = torch.optim.lr_scheduler.OneCycleLR(o, max_lr=1.0, total_steps=total)
///     for i in range(total):
///         print(o.param_groups[0]["lr"]); o.step()
///         if i + 1 < total: s.step()
/// ```
#[test]
fn one_cycle_equals_pytorch() {
    let one = |steps| factors(&Schedule::OneCycle, steps);
    assert_close(&one(1), &[4e-06]);
    assert_close(&one(2), &[0.811745653949763, 4e-06]);
    assert_close(&one(3), &[0.9944154354509117, 0.46263710266697505, 4e-06]);
    assert_close(&one(4), &[0.040000000000000036, 0.811745653949763, 0.28306099820869923, 4e-06]);
    let ten = [
        0.040000000000000036,
        0.52,
        1.0,
        0.9504846320134737,
        0.8117456539497631,
        0.6112620219362893,
        0.38874197806371075,
        0.18825834605023697,
        0.049519367986526286,
        4e-06,
    ];
    assert_close(&one(10), &ten);
    let eleven = [
        0.040000000000000036,
        0.4223411137347358,
        0.9602614247226174,
        0.9797465678213015,
        0.8844757247686303,
        0.7260870492975283,
        0.5305827080875998,
        0.3300580289872949,
        0.15743251279950787,
        0.041045543206290856,
        4e-06,
    ];
    assert_close(&one(11), &eleven);
}

/// Equivalent Python:
///
/// ```python
/// s = MultiStepLR(o, milestones=[2, 5], gamma=0.1)
/// ```
#[test]
fn multi_step_equals_pytorch() {
    let schedule = Schedule::MultiStep { warmup: 0., milestones: vec![2. / 7., 5. / 7.], gamma: 0.1 };
    assert_close(&factors(&schedule, 7), &[1., 1., 0.1, 0.1, 0.1, 0.01, 0.01]);
    // In any order, and twice at one step; a milestone at the end is none.
    let milestones = vec![5. / 6., 2. / 6., 2. / 6., 1.];
    let schedule = Schedule::MultiStep { warmup: 0., milestones, gamma: 0.5 };
    assert_close(&factors(&schedule, 6), &[1., 1., 0.25, 0.25, 0.25, 0.125]);
    // 0.29 * 100 is a little less than 29.
    let schedule = Schedule::MultiStep { warmup: 0., milestones: vec![0.29], gamma: 0.5 };
    assert_close(&[schedule.factor(28, 100), schedule.factor(29, 100)], &[1., 0.5]);
}

/// Equivalent Python:
///
/// ```python
/// s = ChainedScheduler([LinearLR(o, start_factor=1/4, total_iters=3), MultiStepLR(o, milestones=[2, 5], gamma=0.5)])
/// ```
#[test]
fn multi_step_with_a_warmup_equals_pytorch() {
    let schedule = Schedule::MultiStep { warmup: 4. / 7., milestones: vec![2. / 7., 5. / 7.], gamma: 0.5 };
    assert_close(&factors(&schedule, 7), &[0.25, 0.5, 0.375, 0.5, 0.5, 0.25, 0.25]);
}

/// Equivalent Python:
///
/// ```python
/// s = ChainedScheduler([LinearLR(o, start_factor=1/10, total_iters=9), MultiStepLR(o, milestones=[100, 150], gamma=0.1)])
/// ```
#[test]
fn the_default_is_the_papers_recipe_after_a_warmup() {
    let got = factors(&Schedule::default(), 200);
    let warmup: Vec<f64> = (1..=10).map(|i| f64::from(i) / 10.).collect();
    assert_close(&got[..10], &warmup);
    for (steps, want) in [(10..100, 1.), (100..150, 0.1), (150..200, 0.01)] {
        assert_close(&got[steps.clone()], &vec![want; steps.len()]);
    }
    // The same shape whatever the length, and no warm-up where a twentieth is not a step.
    assert_close(&factors(&Schedule::default(), 4), &[1., 1., 0.1, 0.01]);
}

/// Equivalent Python:
///
/// ```python
/// s = SequentialLR(o, [LinearLR(o, start_factor=1/4, end_factor=1.0, total_iters=3),
///                      CosineAnnealingLR(o, T_max=6, eta_min=0.1)], milestones=[4])
/// ```
#[test]
fn warmup_cosine_equals_pytorch() {
    let want = [0.25, 0.5, 0.75, 1.0, 1.0, 0.9397114317029974, 0.775, 0.55, 0.325, 0.1602885682970026];
    assert_close(&factors(&Schedule::WarmupCosine { warmup: 0.4, floor: 0.1 }, 10), &want);
}

#[test]
fn warmup_cosine_ends_at_its_floor_and_may_be_all_warmup() {
    let schedule = Schedule::WarmupCosine { warmup: 0.2, floor: 0.25 };
    assert_close(&[schedule.factor(10, 10), schedule.factor(99, 10)], &[0.25, 0.25]);
    assert_close(&factors(&Schedule::WarmupCosine { warmup: 1., floor: 0. }, 3), &[1. / 3., 2. / 3., 1.]);
    assert_close(&factors(&Schedule::WarmupCosine { warmup: 0., floor: 0. }, 2), &[1., 0.5]);
}
