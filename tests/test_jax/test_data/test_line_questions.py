"""Questions of the standard library: four lines that are there, of which one comes next."""

from pathlib import Path

from stellarbyte.door import main
from stellarbyte.evaluation.choices import read_task
from stellarbyte_jax.data.corpus import stdlib_sources
from stellarbyte_jax.data.line_questions import line_questions


def test_the_answer_comes_next_and_the_others_elsewhere(tmp_path: Path) -> None:
    texts, seen = dict(stdlib_sources()), 0
    for number, question in enumerate(line_questions()):
        if number % 20:
            continue
        context, choices, answer = question["context"], question["choices"], question["answer"]
        assert isinstance(context, str) and isinstance(choices, list) and isinstance(answer, int)
        text = "\n".join(texts[str(question["path"])].splitlines()) + "\n"
        assert context + choices[answer] + "\n" in text
        assert len(set(choices)) == 4
        for choice in choices:
            assert len(choice) - len(choice.lstrip()) == len(choices[answer]) - len(choices[answer].lstrip())
            assert choice == choices[answer] or context + choice + "\n" not in text
        seen += 1
    assert seen > 20
    assert main(["corpus", "stdlib", "--questions", str(tmp_path / "questions.jsonl")]) == 0
    task = read_task(str(tmp_path / "questions.jsonl"))
    assert len(task.questions) > 20 * (seen - 1)
    shares = [sum(question.answer == place for question in task.questions) / len(task.questions) for place in range(4)]
    assert max(shares) < 0.3
