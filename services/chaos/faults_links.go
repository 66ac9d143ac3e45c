package main

import (
	"context"
	"errors"
	"math/rand/v2"
	"time"
)

var linkFaults = []fault{
	{name: "link-cut", deaf: true, lasts: 10 * time.Second, apply: cut},
	{name: "link-half-open", deaf: true, lasts: 20 * time.Second, apply: poisoned("", "", "timeout", toxic{"timeout": 0})},
	{name: "links-half-open-redis", deaf: true, lasts: 20 * time.Second,
		apply: poisoned("worker", toRedis, "timeout", toxic{"timeout": 0})},
	{name: "link-reset", deaf: true, lasts: 10 * time.Second, apply: poisoned("", "", "limit_data", toxic{"bytes": 20_000})},
	{name: "links-reset-store", lasts: 15 * time.Second,
		apply: poisoned("worker", toStore, "limit_data", toxic{"bytes": 100_000})},
	{name: "links-reset-clients", lasts: 15 * time.Second,
		apply: poisoned("client", "api", "limit_data", toxic{"bytes": 100_000})},
	{name: "links-slow-store", lasts: 20 * time.Second,
		apply: poisoned("worker", toStore, "bandwidth", toxic{"rate": 50})},
	{name: "links-slow-postgres", lasts: 20 * time.Second,
		apply: poisoned("worker", toPostgres, "bandwidth", toxic{"rate": 50})},
}

// cut refuses and closes the connections of one link.
func cut(_ context.Context, s *system, choose *rand.Rand) (func(context.Context) error, error) {
	victim := s.anyLink(choose)
	s.events.say("the link of %s to %s is cut", victim.from, victim.to)
	victim.cut()
	return func(context.Context) error { return victim.mend() }, nil
}

func (s *system) anyLink(choose *rand.Rand) *link {
	all := s.links.between("", "")
	return all[choose.IntN(len(all))]
}

// poisoned adds a toxic to the links of which both names begin so; to any one if both are empty.
func poisoned(from, to, kind string, attributes toxic) breaker {
	return func(_ context.Context, s *system, choose *rand.Rand) (func(context.Context) error, error) {
		victims := s.links.between(from, to)
		if from+to == "" {
			victims = []*link{s.anyLink(choose)}
			s.events.say("%s on the link of %s to %s", kind, victims[0].from, victims[0].to)
		}
		var errs []error
		for _, victim := range victims {
			errs = append(errs, victim.poison(kind, attributes))
		}
		return func(ctx context.Context) error {
			var errs []error
			for _, victim := range victims {
				errs = append(errs, victim.cure(ctx, kind))
			}
			return errors.Join(errs...)
		}, errors.Join(errs...)
	}
}
