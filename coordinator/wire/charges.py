"""What a plan costs: the events that one attempt, and the whole run, release about a patient.

The coordinator calibrates by them and every site charges by them. A site reckons for itself, with its own installed
copy of this file, and refuses a plan that costs more than it says.
"""

from dataclasses import replace

from coordinator.wire.contribution import LOSS_GRID
from coordinator.wire.plan import PrivacyPlan, RoundPlan, TrainingPlan
from privacy.dp.accounting import joint_noise_multiplier
from privacy.dp.events import DiscreteLaplace, Event, SubsampledGaussian


def attempt_events(privacy: PrivacyPlan, training: TrainingPlan) -> tuple[Event, ...]:
    """All that one attempt releases about a patient: the noisy steps, the loss and the scores."""
    if not privacy.is_private:
        return ()
    return (gradient_event(privacy, training), *_metric_events(privacy))


def run_events(plan: RoundPlan) -> tuple[Event, ...]:
    """All that the plan's whole run may release about a patient: every attempt it was calibrated for, and the count."""
    if not plan.privacy.is_private:
        return ()
    attempts = plan.rounds_charged
    gradients = gradient_event(plan.privacy, plan.training)
    return (
        replace(gradients, steps=gradients.steps * attempts),
        *side_events(plan.privacy, attempts),
    )


def gradient_event(privacy: PrivacyPlan, training: TrainingPlan) -> SubsampledGaussian:
    """The steps of one attempt. Gradients and loads of a step are one Gaussian release of the same sample."""
    noise = privacy.noise_multiplier
    if privacy.load_noise_multiplier > 0:
        noise = joint_noise_multiplier(noise, privacy.load_noise_multiplier)
    return SubsampledGaussian(
        sample_rate=training.sample_rate, noise_multiplier=noise, steps=training.local_steps
    )


def side_events(privacy: PrivacyPlan, attempts: int) -> tuple[Event, ...]:
    """What a run of so many attempts releases besides the steps: one count, and the metrics of every attempt."""
    metrics = tuple(replace(event, count=attempts) for event in _metric_events(privacy))
    if privacy.count_epsilon > 0:
        return (count_event(privacy), *metrics)
    return metrics


def count_event(privacy: PrivacyPlan) -> DiscreteLaplace:
    """The number of patients, once per run."""
    return DiscreteLaplace(epsilon=privacy.count_epsilon)


def _metric_events(privacy: PrivacyPlan) -> tuple[DiscreteLaplace, ...]:
    events = []
    if privacy.metric_epsilon > 0:
        events.append(DiscreteLaplace(epsilon=privacy.metric_epsilon, sensitivity=LOSS_GRID))
    if privacy.auc_epsilon > 0:
        # A patient stands in one bin, so the whole histogram moves by 1 in L1.
        events.append(DiscreteLaplace(epsilon=privacy.auc_epsilon))
    return tuple(events)
