"""The report of a run: one page that has all of it, and refuses what is none."""

from pathlib import Path

import pytest

from dalle.errors import DataError
from dalle.files import CannotWriteError
from tests.support.curves import logged_scalars
from tests.support.stages import vq_training, write_stage_1
from training import vq
from training.curves import charts, read_logged
from training.report import write_report


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    write_stage_1(folder)
    assert vq.run(vq_training(folder))
    return folder / "run"


def test_the_page_has_all_of_the_run(run: Path, tmp_path: Path) -> None:
    (tmp_path / "table.md").write_text(
        "# m<b>, 123\n\n## Reconstruction\n\n| split | PSNR |\n| --- | ---: |\n| val | 9.50 |\n"
    )
    page = write_report(run, evaluation=tmp_path).read_text(encoding="utf-8")
    logged = read_logged(run)
    assert logged.scalars == logged_scalars(run)
    names = {name.partition("/")[2] for name in logged.scalars}
    assert page.count("<svg") == len(names) and {*charts(logged.scalars)} == names
    assert page.count("data:image/png;base64,") == 2, "two validations"
    assert "12 of 12 steps are saved" in page and "&quot;batch_size&quot;: 4" in page
    assert "<td>val</td><td>9.50</td>" in page and "m&lt;b&gt;" in page
    assert 'src="http' not in page and "<script" not in page
    assert write_report(run.parent, out=tmp_path / "all.html").exists(), "of a folder of runs, and again"


def test_what_is_no_run_is_refused(run: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no run of training"):
        write_report(tmp_path)
    with pytest.raises(DataError, match="holds no evaluation"):
        write_report(run, evaluation=tmp_path)
    (tmp_path / "mine.html").write_text("mine")
    with pytest.raises(CannotWriteError, match="it is no report of this program"):
        write_report(run, out=tmp_path / "mine.html")
