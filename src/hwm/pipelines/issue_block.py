"""The block of `hwm doctor` that may be pasted into an issue: findings without anything private.

`Diagnosis` -> lines of text. The home folder is `~`, other folders are left out, the user's name is not there;
environment variables are never read for it.
"""

import re
from pathlib import Path

from hwm.engine.provenance import provenance
from hwm.pipelines.doctor import Diagnosis, Finding
from hwm.terminal import counted


def issue_block(diagnosis: Diagnosis) -> list[str]:
    """The lines of the block."""
    rows = [("hwm doctor", "all that is needed works" if diagnosis.works else "something needed is missing or broken")]
    commit = provenance()["git"]
    if commit is not None:
        rows.append(("commit", f"{commit['commit']}, {counted(commit['changed_files'], 'changed file')}"))
    rows += [(finding.name, _said(finding)) for finding in diagnosis.findings]
    width = max(len(name) for name, _ in rows)
    return [f"{name:<{width}}  {text}" for name, text in rows]


def without_private(text: str) -> str:
    """Text with the home folder as `~`, other absolute folders as `…`, and without the user's name."""
    own = Path.home()
    text = text.replace(str(own), "~")
    text = re.sub(r"(?<![\w.~:/])/(?:[^\s/:'\"]+/)+", "…/", text)
    # Short names and root's would cut words apart; they are in no path that is left.
    return re.sub(rf"\b{re.escape(own.name)}\b", "user", text) if len(own.name) > 2 and own.name != "root" else text


def _said(finding: Finding) -> str:
    state = "" if finding.state == "ok" else f"{finding.state}: "
    return state + without_private(finding.text if finding.public is None else finding.public)
