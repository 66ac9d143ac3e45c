package main

import "context"

// cohorts exports a hundred patients out of populations of one, four and sixteen times the size.
func (b *bench) cohorts(ctx context.Context) error {
	for _, times := range []int{1, 4, 16} {
		p, err := b.population(ctx, b.patients/16*times)
		if err != nil {
			return err
		}
		d, err := b.deploy(ctx, p, 1)
		if err != nil {
			return err
		}
		figures := cohortFigures{Times: times, Patients: b.patients / 16 * times, Megabytes: p.megabytes}
		for round := range b.options.rounds + 1 {
			job, took, err := d.export(ctx, "hundred")
			if err == nil && round > 0 { // the first round fills caches
				figures.Seconds = append(figures.Seconds, took.Seconds())
			}
			if err == nil {
				err = d.client.Cancel(ctx, job)
			}
			if err != nil {
				d.stop()
				return err
			}
		}
		d.stop()
		b.report.Cohorts = append(b.report.Cohorts, figures)
	}
	return nil
}
