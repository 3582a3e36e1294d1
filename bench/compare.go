// compare.go measures contestants against each other on a noisy machine: in
// turns, in one process, by the median of many short rounds.

package main

import (
	"context"
	"math/rand/v2"
	"time"

	"github.com/livepool/livepool/bench/gauge"
)

// measured is what one contestant took, for one operation.
type measured struct {
	perOp time.Duration // median over the rounds
	ratio float64       // to the first contestant of the same round, median over the rounds
}

// contestant is one of those that are measured.
type contestant struct {
	run func() error
	// renew gives it a new connection every so many rounds: one may be faster
	// than another for as long as it lives, by the core that serves it.
	renew func()
}

const renewEvery = 20

// compare runs the contestants in turns and returns what each took. Each
// round has an order of its own, so that neither a drift of the machine nor the
// place in the round favours one.
func compare(ctx context.Context, rounds int, each time.Duration, contestants ...contestant) ([]measured, error) {
	n, err := calibrate(each, contestants[0].run)
	if err != nil {
		return nil, err
	}
	rng := rand.New(rand.NewPCG(1, 0))
	took := make([][]float64, len(contestants))
	ratios := make([][]float64, len(contestants))
	for round := range rounds + 1 {
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		turn := make([]float64, len(contestants))
		for _, i := range rng.Perm(len(contestants)) {
			if round%renewEvery == 0 {
				contestants[i].renew()
			}
			d, err := contestants[i].round(n)
			if err != nil {
				return nil, err
			}
			turn[i] = float64(d) / float64(n)
		}
		if round == 0 {
			continue // warms up
		}
		for i := range contestants {
			took[i] = append(took[i], turn[i])
			ratios[i] = append(ratios[i], turn[i]/turn[0])
		}
	}
	result := make([]measured, len(contestants))
	for i := range contestants {
		result[i] = measured{time.Duration(gauge.Quantile(took[i], 0.5)), gauge.Quantile(ratios[i], 0.5)}
	}
	return result, nil
}

// round measures n runs, after some that do not count.
func (c contestant) round(n int) (time.Duration, error) {
	if _, err := repeat(1+n/10, c.run); err != nil {
		return 0, err
	}
	return repeat(n, c.run)
}

// calibrate finds how many runs of f fill a round.
func calibrate(each time.Duration, f func() error) (n int, err error) {
	for n = 1; ; n *= 2 {
		d, err := repeat(n, f)
		if err != nil {
			return 0, err
		}
		if d >= each/2 {
			return max(1, int(float64(n)*float64(each)/float64(d))), nil
		}
	}
}

func repeat(n int, f func() error) (time.Duration, error) {
	start := time.Now()
	for range n {
		if err := f(); err != nil {
			return 0, err
		}
	}
	return time.Since(start), nil
}
