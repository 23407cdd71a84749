//! What the fallbacks of a job must be. Pure: from `models` and `fallbacks` to the steps of the
//! job's way, or to everything that is wrong with them.

use sluice_shared::{
    api::{FallbackOn, NewFallback, NewJob},
    domain::{Account, Delivery, Lane, Span, Step, Time},
};

use super::{
    lane,
    submit::{Flaws, MOST_NAME, MOST_TAG, MOST_TAGS},
};

/// Fallbacks of a job, at most.
const MOST: usize = 8;

/// When the next of `models` is taken.
const NEXT_MODEL: Span = Span::seconds(30);

const LEAST_AFTER: Span = Span::seconds(1);
const MOST_AFTER: Span = Span::seconds(30 * 86_400);

/// A fallback as it was asked for.
#[derive(Debug)]
pub(super) struct Asked {
    /// What it is called in the request.
    field: String,
    fallback: NewFallback,
    /// It is the next of `models`: its conditions are ours to choose.
    is_model: bool,
}

/// What else of a job its fallbacks depend on.
#[derive(Debug)]
pub(super) struct Context<'a> {
    pub(super) lane: &'a Lane,
    pub(super) max_attempts: u32,
    pub(super) delivery: Delivery,
    /// When it begins to wait.
    pub(super) from: Time,
    pub(super) expires_at: Option<Time>,
    pub(super) accounts: &'a [Account],
}

/// Takes the fallbacks out of a job; the first of `models` becomes its model.
pub(super) fn take(job: &mut NewJob, flaws: &mut Flaws) -> Vec<Asked> {
    let models = std::mem::take(&mut job.models);
    let fallbacks = std::mem::take(&mut job.fallbacks);
    if models.is_empty() {
        if fallbacks.len() > MOST {
            let detail = format!("are {}; the most is {MOST}", fallbacks.len());
            flaws.invalid("fallbacks", detail);
            return Vec::new();
        }
        let asked = |(index, fallback)| Asked {
            field: format!("fallbacks[{index}]"),
            fallback,
            is_model: false,
        };
        return fallbacks.into_iter().enumerate().map(asked).collect();
    }
    if job.model.is_some() {
        flaws.invalid("models", "cannot be given together with model");
    }
    if !fallbacks.is_empty() {
        let detail = "cannot be given together with models; name a model in each fallback instead";
        flaws.invalid("fallbacks", detail);
    }
    if models.len() > MOST + 1 {
        flaws.invalid(
            "models",
            format!("are {}; the most is {}", models.len(), MOST + 1),
        );
        return Vec::new();
    }
    for (index, model) in models.iter().enumerate() {
        flaws.name(&format!("models[{index}]"), model, MOST_NAME);
        if models[..index].contains(model) {
            flaws.invalid(format!("models[{index}]"), "is named twice");
        }
    }
    let mut models = models.into_iter().enumerate();
    job.model = models.next().map(|(_, first)| first);
    models
        .map(|(index, model)| Asked {
            field: format!("models[{index}]"),
            fallback: NewFallback {
                model: Some(model),
                after: Some(NEXT_MODEL),
                ..NewFallback::default()
            },
            is_model: true,
        })
        .collect()
}

/// The job's way, its own lane first; empty without fallbacks.
pub(super) fn steps(asked: Vec<Asked>, context: &Context<'_>, flaws: &mut Flaws) -> Vec<Step> {
    if asked.is_empty() {
        return Vec::new();
    }
    let first = Step {
        lane: context.lane.key(),
        model: context.lane.model.clone(),
        after_ms: None,
        on_failure: false,
    };
    let mut steps = vec![first];
    // Until when the job has waited at the least when it comes to a step, if only time brings it.
    let mut reached = Some(context.from);
    for asked in asked {
        let step = step(&asked, context, reached, flaws);
        if steps.last().is_some_and(|before| before.lane == step.lane) {
            let detail = "asks for the same accounts and model as the step before it";
            flaws.invalid(asked.field.as_str(), detail);
        }
        reached = reached.and_then(|at| match step.on_failure {
            true => None,
            false => step.due(at),
        });
        steps.push(step);
    }
    steps
}

fn step(asked: &Asked, context: &Context<'_>, reached: Option<Time>, flaws: &mut Flaws) -> Step {
    let Asked {
        field,
        fallback,
        is_model,
    } = asked;
    let mut on_failure = fallback.on == Some(FallbackOn::Failure);
    if *is_model {
        on_failure = context.max_attempts > 1 && context.delivery == Delivery::AtLeastOnce;
    } else {
        check_names(field, fallback, flaws);
        check_conditions(field, fallback, context, reached, flaws);
    }
    let lane = Lane::new(
        fallback.account.clone(),
        fallback
            .model
            .clone()
            .or_else(|| context.lane.model.clone()),
        fallback
            .tags
            .clone()
            .unwrap_or_else(|| context.lane.tags.clone()),
    );
    let mut lacks = Flaws::default();
    lane::check(&lane, context.accounts, &mut lacks);
    if *is_model {
        flaws.of_whole(field, lacks);
    } else {
        flaws.of_part(field, lacks);
    }
    let after = fallback.after.map(Span::as_millis);
    Step {
        lane: lane.key(),
        model: lane.model,
        after_ms: after.and_then(|millis| u64::try_from(millis).ok()),
        on_failure,
    }
}

fn check_names(field: &str, fallback: &NewFallback, flaws: &mut Flaws) {
    if let Some(model) = &fallback.model {
        flaws.name(&format!("{field}.model"), model, MOST_NAME);
    }
    let tags = fallback.tags.as_deref().unwrap_or_default();
    if tags.len() > MOST_TAGS {
        let detail = format!("are {}; the most is {MOST_TAGS}", tags.len());
        flaws.invalid(format!("{field}.tags"), detail);
        return;
    }
    for (index, tag) in tags.iter().enumerate() {
        flaws.name(&format!("{field}.tags[{index}]"), tag, MOST_TAG);
    }
}

fn check_conditions(
    field: &str,
    fallback: &NewFallback,
    context: &Context<'_>,
    reached: Option<Time>,
    flaws: &mut Flaws,
) {
    if fallback.after.is_none() && fallback.on.is_none() {
        flaws.invalid(
            field,
            "has no condition; give after, or on, or both for whichever comes first",
        );
    }
    if let Some(after) = fallback.after {
        if !(LEAST_AFTER..=MOST_AFTER).contains(&after) {
            let detail = format!("is {after}; it goes from 1s to 30 days");
            flaws.invalid(format!("{field}.after"), detail);
        } else if let (Some(reached), Some(expires_at), None) =
            (reached, context.expires_at, fallback.on)
            && reached + after.0 >= expires_at
        {
            let detail = "comes after the job has expired, so it would never be of use";
            flaws.invalid(format!("{field}.after"), detail);
        }
    }
    if fallback.on.is_some() {
        let detail = if context.delivery == Delivery::AtMostOnce {
            "cannot be for a job that is delivered at most once: it never runs again"
        } else if context.max_attempts < 2 {
            "needs max_attempts of at least 2: the attempt on the fallback counts, too"
        } else {
            return;
        };
        flaws.invalid(format!("{field}.on"), detail);
    }
}
