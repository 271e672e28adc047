"""The kit's two processes tell of an error in one of them."""

import pytest
from torch.multiprocessing import ProcessRaisedException

from finetune_common.testing import run_two_processes


@pytest.mark.slow
def test_an_error_in_a_process_reaches_the_caller():
    with pytest.raises(ProcessRaisedException, match="ZeroDivisionError"):
        run_two_processes(divmod, 0)
