from curation.recipe import Recipe as Recipe
from curation.recipe import load as load
from curation.verbs import build as build
from curation.verbs import clean as clean
from curation.verbs import diff as diff
from curation.verbs import dry_run as dry_run
from curation.verbs import export as export
from curation.verbs import index_add as index_add
from curation.verbs import index_remove as index_remove
from curation.verbs import index_show as index_show
from curation.verbs import index_verify as index_verify
from curation.verbs import init as init
from curation.verbs import inspect as inspect
from curation.verbs import remix as remix
from curation.verbs import report as report
from curation.verbs import show as show
from curation.verbs import signatures as signatures
from curation.verbs import verify as verify
from curation.verbs import why as why
from mixing import UserError as UserError
from mixing.manifest import Manifest as Manifest

__all__: list[str]
