"""Samplers of higher order: exponential integrators over ln(alpha / sigma), and Runge and Kutta's methods over the
time of flow matching.

With l = ln(alpha / sigma) and h = l' - l, the solution from one level to the next is

    x' = (sigma' / sigma) x + alpha' integral_0^1 h exp(-(1 - t) h) x_0(t) dt

where x_0(t) is the network's along the way (Lu et al. 2022, DPM-Solver++, equation 9; the stochastic
one has 2 h for h and exp(-h) sigma' / sigma for the state). A polynomial in t through known x_0 gives
each method, with the integrals phi_k of t^k.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from pyfastgan._names import check_choice
from pyfastgan.diffusion.grid import Grid
from pyfastgan.diffusion.prediction import PREDICTIONS
from pyfastgan.diffusion.sampler import Number, Sampler, Stage
from pyfastgan.diffusion.schedule import NoiseSchedule


def phi(h: Tensor, most: int) -> list[Tensor]:
    """integral_0^1 h exp(-(1 - t) h) t^k dt for k = 0 to `most`; 1 where h is infinite."""
    found = [-torch.expm1(-h)]
    for k in range(1, most + 1):
        found.append(1 - k / h * found[-1])
    return found


class DPMSolverPP(Sampler):
    """DPM-Solver++ (Lu et al. 2022): orders 1, 2 and 3 over earlier predictions, or within groups of levels.

    Args:
        order: 1, 2 or 3.
        variant: "multistep" keeps the last predictions; "singlestep" takes `order` levels together and keeps none.
        stochastic: the stochastic differential equation's solver, multistep only.
        third: "exact" integrates the quadratic through three predictions, and begins with a
            third-order start of two more calls in each of the first two steps; "compat" has the coefficients of
            `diffusers`, where half of the quadratic term is missing, so that its order is 2, and where the stochastic
            solver's has 1/2 of the wrong sign, so that it does not get better with smaller steps.
        solver: "midpoint" or "heun", the second-order formula (the same order).
        lower_order_final: whether fewer than 15 steps end with lower orders, as in the published
            libraries; not with an exact third order. A step that ends at data is of first order in any case.
    """

    def __init__(
        self,
        schedule: NoiseSchedule,
        *args: Any,
        order: int = 2,
        variant: str = "multistep",
        stochastic: bool = False,
        third: str = "exact",
        solver: str = "midpoint",
        lower_order_final: bool = True,
        **options: Any,
    ) -> None:
        if order not in (1, 2, 3):
            raise ValueError(f"order must be 1, 2 or 3, got {order}")
        check_choice("variant", variant, ("multistep", "singlestep"))
        check_choice("third", third, ("exact", "compat"))
        check_choice("solver", solver, ("midpoint", "heun"))
        if stochastic and variant == "singlestep":
            raise ValueError("variant must be multistep for a stochastic solver, got 'singlestep'")
        self.order, self.variant, self.stochastic = order, variant, stochastic
        self.exact, self.solver = third == "exact", solver
        self.lower_order_final = lower_order_final
        super().__init__(schedule, *args, **options)

    def make_stages(self, grid: Grid) -> list[Stage]:
        self._alpha, self._sigma, self._log_ratio = grid.alpha, grid.sigma, grid.log_ratio
        return self._multistep() if self.variant == "multistep" else self._singlestep()

    def _ends_at_data(self) -> bool:
        return bool(self._sigma[-1] == 0)

    def _orders(self) -> list[int]:
        """The order of each step of the multistep variant."""
        orders = [min(k + 1, self.order) for k in range(self.steps)]
        starts = self.order == 3 and self.exact and not self.stochastic
        if self.lower_order_final and self.steps < 15 and not starts:
            orders[-1] = 1
            if self.steps > 1:
                orders[-2] = min(orders[-2], 2)
        if self._ends_at_data():
            orders[-1] = 1
        return orders

    def _multistep(self) -> list[Stage]:
        stages: list[Stage] = []
        start = 2 if self.order == 3 and self.exact and not self.stochastic else 0
        for k, order in enumerate(self._orders()):
            names = tuple(f"x0 of {k - j}" for j in range(1, order))
            if k < start and not (k + 1 == self.steps and self._ends_at_data()):
                stages += self._third_order_start(k)
                continue
            stages.append(Stage(k, self._multistep_row(k, order), names, {"x0": f"x0 of {k}"}))
            stages[-1].noise = self.stochastic and bool(self._sigma[k + 1] > 0)
        return stages

    def _multistep_row(self, k: int, order: int) -> dict[str, Number]:
        alpha, sigma, log_ratio = self._alpha, self._sigma, self._log_ratio
        h = log_ratio[k + 1] - log_ratio[k]
        share, next_alpha = sigma[k + 1] / sigma[k], alpha[k + 1]
        length = 2 * h if self.stochastic else h
        row: dict[str, Number] = {"state": share * torch.exp(-h) if self.stochastic else share}
        if self.stochastic:
            row["noise"] = sigma[k + 1] * phi(length, 0)[0] ** 0.5
        weights = torch.zeros(3, dtype=h.dtype)
        p = phi(length, order - 1)
        weights[0] = p[0]
        if order >= 2:
            r0 = (log_ratio[k] - log_ratio[k - 1]) / h
            slope = torch.tensor([1.0, -1.0, 0.0], dtype=h.dtype) / r0
        if order == 2:
            weights += slope * (0.5 * p[0] if self.solver == "midpoint" else p[1])
        if order == 3:
            r1 = (log_ratio[k - 1] - log_ratio[k - 2]) / h
            earlier = torch.tensor([0.0, 1.0, -1.0], dtype=h.dtype) / r1
            curve = (slope - earlier) / (r0 + r1)
            bend = p[2] if self.exact else 0.5 * p[2] - float(self.stochastic)
            weights += p[1] * (slope + r0 * curve) + bend * curve
        row |= {"x0": next_alpha * weights[0], "history1": next_alpha * weights[1]}
        return row | {"history2": next_alpha * weights[2]}

    def _third_order_start(self, k: int) -> list[Stage]:
        """One step of third order from its first level alone, by way of a third and two thirds of it (Lu et al. 2022,
        DPM-Solver, algorithm 2, in x_0)."""
        alpha, sigma, log_ratio = self._alpha, self._sigma, self._log_ratio
        h = log_ratio[k + 1] - log_ratio[k]
        one, two = (
            self.add_level(torch.exp(-(log_ratio[k] + part * h))) for part in (1 / 3, 2 / 3)
        )
        first = f"x0 of {k}"

        def to(level: int, part: float, node: float) -> dict[str, Number]:
            """From level k over `part` of the step; the network's x_0 stands at `node` of that part."""
            to_alpha = self.alphas[level] if level >= len(alpha) else alpha[level]
            to_sigma = self.sigmas[level] if level >= len(alpha) else sigma[level]
            p = phi(part * h, 1)
            return {
                "x0": to_alpha * p[1] / node,
                "history1": to_sigma / sigma[k],
                "history2": to_alpha * (p[0] - p[1] / node),
            }

        p = phi(h / 3, 0)
        begin: dict[str, Number] = {
            "state": self.sigmas[one] / sigma[k],
            "x0": self.alphas[one] * p[0],
        }
        return [
            Stage(k, begin, (), {"state": "start", "x0": first}),
            Stage(one, to(two, 2 / 3, 1 / 2), ("start", first)),
            Stage(two, to(k + 1, 1.0, 2 / 3), ("start", first)),
        ]

    def _singlestep(self) -> list[Stage]:
        """Groups of levels: each level but a group's first is an intermediate point of the step over the group."""
        stages: list[Stage] = []
        for k, place in enumerate(self._places()):
            row, names = self._singlestep_row(k, place)
            keep = {"x0": f"x0 {place}"} if place < 2 else {}
            stages.append(Stage(k, row, names, keep | ({"state": "start"} if place == 0 else {})))
        return stages

    def _places(self) -> list[int]:
        """The place of each level in its group, 0 to order - 1."""
        groups, left = divmod(self.steps, self.order)
        places = list(range(self.order)) * groups + list(range(left))
        if self._ends_at_data() and places[-1] != 0:
            # The step that ends at data stands alone; the group before it is shorter by one.
            places[-1] = 0
        return places

    def _singlestep_row(self, k: int, place: int) -> tuple[dict[str, Number], tuple[str, ...]]:
        alpha, sigma, log_ratio = self._alpha, self._sigma, self._log_ratio
        first = k - place
        h = log_ratio[k + 1] - log_ratio[first]
        share, next_alpha = sigma[k + 1] / sigma[first], alpha[k + 1]
        p = phi(h, place)
        if place == 0:
            return {"state": share, "x0": next_alpha * p[0]}, ()
        r0 = (log_ratio[k] - log_ratio[first]) / h  # of the newest
        if place == 1:
            slope = (0.5 * p[0] if self.solver == "midpoint" else p[1]) / r0
            row: dict[str, Number] = {
                "x0": next_alpha * slope,
                "history2": next_alpha * (p[0] - slope),
            }
            return {"history1": share, **row}, ("start", "x0 0")
        r1 = (log_ratio[k - 1] - log_ratio[first]) / h
        if self.solver == "midpoint":
            newest, middle = p[1] / r0, torch.zeros_like(h)
        else:
            # The quadratic through all three.
            newest = (p[2] - r1 * p[1]) / (r0 * (r0 - r1))
            middle = (p[2] - r0 * p[1]) / (r1 * (r1 - r0))
        row = {
            "x0": next_alpha * newest,
            "history2": next_alpha * (p[0] - newest - middle),
            "history3": next_alpha * middle,
        }
        return {"history1": share, **row}, ("start", "x0 0", "x0 1")


class UniPC(Sampler):
    """UniPC (Zhao et al. 2023), B_2(h) = e^h - 1, in x_0: each network call first corrects the state that it was asked
    at, then predicts the next, both in one update.

    Args:
        order: 1, 2 or 3.
        lower_order_final: whether the last steps are of lower order, as in the published library.
    """

    def __init__(
        self,
        schedule: NoiseSchedule,
        *args: Any,
        order: int = 2,
        lower_order_final: bool = True,
        **options: Any,
    ) -> None:
        if order not in (1, 2, 3):
            raise ValueError(f"order must be 1, 2 or 3, got {order}")
        self.order, self.lower_order_final = order, lower_order_final
        super().__init__(schedule, *args, **options)

    def make_stages(self, grid: Grid) -> list[Stage]:
        alpha, sigma, log_ratio = grid.alpha, grid.sigma, grid.log_ratio
        stages: list[Stage] = []
        before: Tensor | None = (
            None  # what the last step's correction makes of x_0 of now, 1, 2, 3 before
        )
        for k in range(self.steps):
            order = min(self.order, k + 1)
            if self.lower_order_final or bool(sigma[-1] == 0):
                order = min(order, self.steps - k)
            h = log_ratio[k + 1] - log_ratio[k]
            share, growth = sigma[k + 1] / sigma[k], alpha[k + 1] * -torch.expm1(-h)
            places = [(log_ratio[k - j] - log_ratio[k]) / h for j in range(1, order)]
            predictor, corrector = self._weights(h, places)
            # x_0 of now, 1, 2 and 3 before.
            weights = torch.zeros(4, dtype=h.dtype)
            weights[0] = growth
            for j, weight in enumerate(predictor):
                weights[j + 1] += growth * weight / places[j]
                weights[0] -= growth * weight / places[j]
            if before is not None:
                weights = weights + share * before
            row: dict[str, Number] = {"state": share, "x0": weights[0]}
            row |= {f"history{j}": weights[j] for j in (1, 2, 3)}
            names = tuple(f"x0 of {k - j}" for j in range(1, min(k, 3) + 1))
            stages.append(Stage(k, row, names, {"x0": f"x0 of {k}"}))
            # The next call's x_0 stands at 0 there, this one's at 1.
            before = torch.zeros(4, dtype=h.dtype)
            for j, weight in enumerate((corrector[:-1] - predictor) * growth):
                before[j + 2] += weight / places[j]
                before[1] -= weight / places[j]
            before[0] += growth * corrector[-1]
            before[1] -= growth * corrector[-1]
        return stages

    def _weights(self, h: Tensor, places: list[Tensor]) -> tuple[Tensor, Tensor]:
        """The weights of the differences from x_0 of now, over their places: of the predictor, and of the corrector,
        whose last is of the x_0 still to come."""
        order = len(places) + 1
        half = torch.full((1,), 0.5, dtype=h.dtype)
        if order == 1:
            return half[:0], half
        growth, powers, right = torch.expm1(-h), [], []
        nodes = torch.stack([*places, torch.ones_like(h)])
        part, factorial = growth / -h - 1, 1.0
        for k in range(1, order + 1):
            powers.append(nodes ** (k - 1))
            right.append(part * factorial / growth)
            factorial *= k + 1
            part = part / -h - 1 / factorial
        matrix, vector = torch.stack(powers), torch.stack(right)
        corrector = torch.linalg.solve(matrix, vector)
        if order == 2:
            return half, corrector
        return torch.linalg.solve(matrix[:-1, :-1], vector[:-1]), corrector


class FlowMatching(Sampler):
    """Runge and Kutta's methods for dx/dt = v(x, t), v = z - x_0, from t = 1 to 0 on the flow path.

    Args:
        method: "euler", "midpoint", "heun" or "rk4": orders 1, 2, 2, 4 with 1, 2, 2, 4 network calls a step.
    """

    def __init__(
        self, schedule: NoiseSchedule, *args: Any, method: str = "euler", **options: Any
    ) -> None:
        check_choice("method", method, ("euler", "midpoint", "heun", "rk4"))
        if schedule.path != "flow":
            raise ValueError(f"schedule must be of the flow path, got {schedule.path!r}")
        if options.get("clip") is not None:
            raise ValueError(f"clip must be None: a velocity has no bound, got {options['clip']}")
        self.method = method
        super().__init__(schedule, *args, **options)

    def _velocity(self, level: int) -> dict[str, Number]:
        """The velocity in the place of x_0, so that it is what guidance has made of the prediction."""
        pair = PREDICTIONS[self.prediction]
        alpha, sigma = self.alphas[level], self.sigmas[level]
        if self.prediction == "flow":
            return {"x0_state": 0.0, "x0_prediction": 1.0}
        x0, noise = pair.x0(alpha, sigma), pair.noise(alpha, sigma)
        return {
            "x0_state": noise.state - x0.state,
            "x0_prediction": noise.prediction - x0.prediction,
        }

    def _stage(
        self,
        level: int,
        v: Number,
        state: Number = 1.0,
        history: Mapping[str, Number] | None = None,
        keep: dict[str, str] | None = None,
    ) -> Stage:
        history = history or {}
        row: dict[str, Number] = {**self._velocity(level), "state": state, "x0": v}
        row |= {f"history{n + 1}": factor for n, factor in enumerate(history.values())}
        return Stage(level, row, tuple(history), keep or {})

    def make_stages(self, grid: Grid) -> list[Stage]:
        stages: list[Stage] = []
        t = grid.sigma
        for k in range(self.steps):
            h = t[k + 1] - t[k]
            if self.method == "euler":
                stages.append(self._stage(k, h))
            elif self.method == "heun":
                stages.append(self._stage(k, h, keep={"x0": "v1"}))
                stages.append(self._stage(k + 1, h / 2, history={"v1": -h / 2}))
            else:
                middle_t = t[k] + h / 2
                middle = self.add_level(middle_t / (1 - middle_t))
                if self.method == "midpoint":
                    stages.append(self._stage(k, h / 2, keep={"state": "before"}))
                    stages.append(self._stage(middle, h, 0.0, {"before": 1.0}))
                else:
                    stages.append(self._stage(k, h / 2, keep={"x0": "v1"}))
                    stages.append(
                        self._stage(middle, h / 2, history={"v1": -h / 2}, keep={"x0": "v2"})
                    )
                    stages.append(self._stage(middle, h, history={"v2": -h / 2}, keep={"x0": "v3"}))
                    sixth = {"v1": h / 6, "v2": h / 3, "v3": -2 * h / 3}
                    stages.append(self._stage(k + 1, h / 6, history=sixth))
        return stages
