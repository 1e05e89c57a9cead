"""The state of training that a checkpoint holds beside tensors."""

from worker.checkpoint.training_state import State


def test_the_best_evaluation_is_that_of_the_lower_loss_among_equals() -> None:
    state = State()
    for step, accuracy, loss in ((1, 0.5, 0.9), (2, 0.8, 0.7), (3, 0.8, 0.6), (4, 0.8, None)):
        state.step = step
        state.note_evaluation(loss=loss, accuracy=accuracy, score=accuracy, min_delta=0.0)
    assert (state.best_step, state.best_accuracy, state.best_loss) == (3, 0.8, 0.6)
    assert (state.evaluated, state.stale) == (4, 2)


def test_a_lower_loss_is_better_and_an_undefined_figure_never_is() -> None:
    state = State()
    for step, score in ((1, -0.9), (2, None), (3, -0.7), (4, -0.8)):
        state.step = step
        state.note_evaluation(loss=0.5, accuracy=step / 10, score=score, min_delta=0.05)
    assert (state.best_step, state.best_score, state.best_accuracy) == (3, -0.7, 0.3)
    assert (state.stale, state.to_beat) == (1, -0.7)
