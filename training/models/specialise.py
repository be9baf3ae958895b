"""Rankers of some domains only, with everything that these do not use removed.

Which methods can be specialised is said here. Invariant: for rows of the chosen domains a specialised ranker
gives the logits of the whole one, up to rounding; where nothing can be dropped there is none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from service.contract.errors import ContractError
from training.models.aread import Aread
from training.models.aread_domain import of_one_domain
from training.models.aread_parts import drops_experts, of_domains
from training.models.base import CtrModel, Ranker
from training.models.cesaa import Cesaa
from training.models.cesaa_domain import cesaa_of_one_domain
from training.models.mmoe import Mmoe
from training.models.mmoe_domain import mmoe_of_one_domain


class SpecialiseError(ContractError, ValueError):
    """Domains that a ranker cannot be specialised to."""


@dataclass(frozen=True)
class Specialised:
    """A ranker of some domains.

    Attributes:
        ranker: In inference form.
        reads_domain: Whether its request side still ends in the domain embedding.
    """

    ranker: Ranker
    reads_domain: bool


def specialise(model: CtrModel, domains: Sequence[int]) -> Specialised | None:
    """A ranker of some domains, or None where nothing can be dropped for them.

    For one domain it has constants in the place of tables by domain; for several, the tables' rows of these.

    Args:
        model: As trained.
        domains: Indices, D for the unknown domain.

    Raises:
        SpecialiseError: No domain, one that does not exist, or one twice.
    """
    _check(domains, model.inputs.num_domains)
    ranker = model.ranker
    if len(domains) == 1 and model.inputs.request_width > model.inputs.domain_dim:
        (domain,) = domains
        vector = model.inputs.domain.weight[domain].detach()
        if isinstance(ranker, Aread):
            return Specialised(of_one_domain(ranker, domain, vector), reads_domain=False)
        if isinstance(ranker, Cesaa):
            return Specialised(cesaa_of_one_domain(ranker, domain, vector), reads_domain=False)
        if isinstance(ranker, Mmoe):
            return Specialised(mmoe_of_one_domain(ranker, domain, vector), reads_domain=False)
        return None
    if isinstance(ranker, Aread) and drops_experts(ranker, domains):
        return Specialised(of_domains(ranker, domains), reads_domain=True)
    return None


def _check(domains: Sequence[int], num_domains: int) -> None:
    if not domains:
        raise SpecialiseError("a ranker of no domains; at least 1 is needed")
    if bad := sorted({d for d in domains if not 0 <= d <= num_domains}):
        raise SpecialiseError(f"domain indices {bad}; allowed are 0 to {num_domains}, the unknown domain")
    if len(set(domains)) < len(domains):
        raise SpecialiseError(f"domain indices {list(domains)} name a domain twice")
