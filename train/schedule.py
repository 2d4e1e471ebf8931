"""Learning rates as pure functions of tokens: nothing here has a state that a checkpoint could bring back against the configuration.

Every schedule rises linearly over its warm-up, from `warmup_from` to 1, and is a share of the peak; what follows, with p the progress from 0 to 1 over
the tokens named (the rest of the run where none are), and f the floor:

constant             1
linear               1 - (1 - f) p
cosine               f + (1 - f) (1 + cos(pi p)) / 2 (arXiv 1608.03983)
wsd                  1, then linear over the last `decay` tokens (warm-up, stable, decay: arXiv 2404.06395)
wsds                 wsd once per period; each begins at 1 again, from the decayed weights of the one before (arXiv 2410.05192)
inverse_square_root  sqrt(warmup / tokens), at least f (arXiv 1706.03762)
infinite             half a cosine from 1 to `plateau` over `cooldown`; `plateau`; plateau (f / plateau)^p over the last `decay` (arXiv 2403.08763)
"""

from __future__ import annotations

import math

from train.config import Config, Schedule, Stage


def learning_rate(config: Config, stage: str, tokens: float, total: int, stage_tokens: float, stage_total: int) -> float:
    """The rate when `tokens` of the run's `total` have been seen, `stage_tokens` of them in the stage called `stage`; amounts are in tokens."""
    override = config.stages.get(stage, Stage())
    peak = override.learning_rate or config.optimizer.learning_rate
    if override.schedule is not None:
        return peak * share_of_peak(override.schedule, stage_tokens, stage_total)
    return peak * share_of_peak(config.schedule, tokens, total)


def share_of_peak(schedule: Schedule, tokens: float, total: int) -> float:
    """The share of the peak when `tokens` of `total` have been seen."""
    warmup, decay, floor = schedule.warmup, schedule.decay, schedule.floor
    if tokens < warmup:
        return schedule.warmup_from + (1 - schedule.warmup_from) * tokens / warmup
    match schedule.kind:
        case "constant":
            return 1.0
        case "linear":
            return _line(_progress(tokens, warmup, total), floor)
        case "cosine":
            return _cosine(_progress(tokens, warmup, total), floor)
        case "wsd":
            return _line(_progress(tokens, max(warmup, total - decay), total), floor)
        case "wsds":
            begin, end = period(schedule.periods, tokens, total)
            return _line(_progress(tokens, max(warmup, begin, end - decay), end), floor)
        case "inverse_square_root":
            return max(floor, math.sqrt(warmup / tokens))
        case "infinite":
            if tokens <= total - decay:
                return _cosine(_progress(tokens, warmup, warmup + schedule.cooldown), schedule.plateau)
            return float(schedule.plateau * (floor / schedule.plateau) ** _progress(tokens, total - decay, total))


def period(lengths: list[int | float], tokens: float, total: int) -> tuple[float, float]:
    """The beginning and the end of the period in which the token after `tokens` stands; the run's end belongs to the last one."""
    begin: float = 0
    for length in lengths:
        end = min(begin + length, total)
        if tokens < end or end == total:
            return begin, end
        begin = end
    return begin, total


def _progress(tokens: float, begin: float, end: float) -> float:
    return min(1.0, max(0.0, tokens - begin) / (end - begin)) if end > begin else 1.0


def _line(progress: float, floor: float) -> float:
    return 1.0 - (1.0 - floor) * progress


def _cosine(progress: float, floor: float) -> float:
    return 1.0 - (1.0 - floor) * (1 - math.cos(math.pi * progress)) / 2
