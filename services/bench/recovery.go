package main

import (
	"context"
	"errors"
	"time"

	"github.com/sluice-fhir/sluice/pkg/bulkclient"
)

// recovery kills one of two workers in the middle of a population's export.
func (b *bench) recovery(ctx context.Context) error {
	d, err := b.deployLargest(ctx, 2)
	if err != nil {
		return err
	}
	defer d.stop()
	began := time.Now()
	job, err := d.client.KickOff(ctx, bulkclient.Request{Group: "all"})
	if err != nil {
		return err
	}
	if err := d.await(ctx, job, startAt); err != nil {
		return err
	}
	killed, other := d.workers[0], d.workers[1]
	at := time.Now()
	killed.Kill()
	if err := d.await(ctx, job, never); err != nil {
		return err
	}
	f := &b.report.Recovery
	f.Export = time.Since(began).Seconds()
	had := map[string]bool{}
	for _, c := range killed.claims() {
		had[c.unit] = true
	}
	for _, c := range other.claims() {
		if had[c.unit] && c.at.After(at) {
			f.Claimed = append(f.Claimed, c.at.Sub(at).Seconds())
		}
	}
	if len(f.Claimed) == 0 {
		return errors.New("the killed worker had no claimed unit")
	}
	return nil
}
