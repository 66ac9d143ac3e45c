package main

import (
	"context"
	"errors"

	"github.com/sluice-fhir/sluice/pkg/bulkclient"
)

// startAt is the progress of the population's export, in per cent, at which the small job starts.
const startAt = 5

// fairness exports ten patients, alone and in the middle of a population's export.
func (b *bench) fairness(ctx context.Context) error {
	d, err := b.deployLargest(ctx, 1)
	if err != nil {
		return err
	}
	defer d.stop()
	f := &b.report.Fairness
	for round := range b.options.rounds + 1 {
		seconds, err := b.small(ctx, d)
		if err != nil {
			return err
		}
		if round > 0 { // the first fills caches
			f.Alone = append(f.Alone, seconds)
		}
	}
	for len(f.UnderLoad) < b.options.rounds {
		big, err := d.client.KickOff(ctx, bulkclient.Request{Group: "all"})
		if err != nil {
			return err
		}
		if err := d.await(ctx, big, startAt); err != nil {
			return err
		}
		for len(f.UnderLoad) < b.options.rounds {
			seconds, err := b.small(ctx, d)
			if err != nil {
				return err
			}
			over, _, err := d.poll(ctx, big)
			if err != nil {
				return err
			}
			if over {
				break // the population's export ended first
			}
			f.UnderLoad = append(f.UnderLoad, seconds)
		}
		if len(f.UnderLoad) == 0 {
			return errors.New("the population's export ended before that of ten patients")
		}
		if err := d.client.Cancel(ctx, big); err != nil {
			return err
		}
	}
	f.Ratio = median(f.UnderLoad) / median(f.Alone)
	return nil
}

func (b *bench) small(ctx context.Context, d *deployment) (float64, error) {
	job, took, err := d.export(ctx, "ten")
	if err != nil {
		return 0, err
	}
	return took.Seconds(), d.client.Cancel(ctx, job)
}
