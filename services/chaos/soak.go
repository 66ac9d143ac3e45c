package main

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/sluice-fhir/sluice/pkg/objects"
)

// sampleEvery is the time between samples of a soak.
const sampleEvery = 10 * time.Second

// levels are what a soak samples. None may grow.
var levels = []string{
	"visits of clients in a minute", "keys in Redis, without transaction times", "memory of Redis, MiB",
	"objects in the bucket", "descriptors of the services", "goroutines of the services", "memory of the services, MiB",
}

// sample has the values of the levels.
type sample struct {
	at     time.Duration
	values []float64
}

// soak breaks nothing while the clients export. It draws the levels into a file, and what has grown is a violation.
func (s *system) soak(ctx context.Context) error {
	bucket, err := s.bucket()
	if err != nil {
		return err
	}
	defer bucket.Close()
	client := redis.NewClient(&redis.Options{Addr: s.redis.Addr()})
	defer client.Close()
	var samples []sample
	began, visits := time.Now(), s.events.visitors()
	for time.Since(began) < s.opts.lasts {
		if err := pause(ctx, sampleEvery); err != nil {
			return err
		}
		values, err := s.level(ctx, client, bucket)
		if err != nil {
			return err
		}
		now := s.events.visitors()
		values[0] = float64(now-visits) * time.Minute.Seconds() / sampleEvery.Seconds()
		visits = now
		samples = append(samples, sample{time.Since(began), values})
	}
	if len(samples) >= 3 {
		s.checkFlat(samples)
	}
	return os.WriteFile(s.opts.soak, []byte(chart(samples)), 0o644) //nolint:gosec // a picture for the docs
}

// level samples all levels but the first.
func (s *system) level(ctx context.Context, client *redis.Client, bucket *objects.Store) ([]float64, error) {
	keys := 0
	scan := client.Scan(ctx, 0, "*", 1000).Iterator()
	for scan.Next(ctx) {
		if !strings.HasPrefix(scan.Val(), "sluice:continue:") { // one of each export, for 400 days
			keys++
		}
	}
	if err := scan.Err(); err != nil {
		return nil, err
	}
	memory, err := client.InfoMap(ctx, "memory").Result()
	if err != nil {
		return nil, err
	}
	var bytes float64
	if _, err := fmt.Sscan(memory["Memory"]["used_memory"], &bytes); err != nil {
		return nil, fmt.Errorf("memory of Redis: %w", err)
	}
	count := 0
	if err := bucket.List(ctx, "", func(objects.Info) error { count++; return nil }); err != nil {
		return nil, err
	}
	uses, err := s.measure(ctx)
	if err != nil {
		return nil, err
	}
	values := []float64{0, float64(keys), bytes / (1 << 20), float64(count), 0, 0, 0}
	for _, each := range s.services {
		values[4] += float64(uses[each.name].open)
		values[5] += float64(uses[each.name].goroutines)
		values[6] += float64(uses[each.name].memory)
	}
	return values, nil
}

// checkFlat compares the last third with the one before. In the first one caches fill.
func (s *system) checkFlat(samples []sample) {
	third := len(samples) / 3
	for i, name := range levels {
		before, last := median(samples[third:2*third], i), median(samples[2*third:], i)
		s.events.say("%s: median %.1f, in the last third %.1f", name, before, last)
		const most, noise = 1.15, 20
		if i > 0 && last > before*most+noise {
			s.events.violated("%s: %.1f in the last third, %.1f before", name, last, before)
		}
	}
}

func median(samples []sample, i int) float64 {
	var all []float64
	for _, each := range samples {
		all = append(all, each.values[i])
	}
	slices.Sort(all)
	return all[len(all)/2]
}

// chart draws each level over time as an SVG, from zero to its largest value.
func chart(samples []sample) string {
	const width, height, gap, left, right = 900, 70, 40, 20, 20
	end := 1.0
	if len(samples) > 0 {
		end = samples[len(samples)-1].at.Minutes()
	}
	x := func(minutes float64) float64 { return left + minutes/end*(width-left-right) }
	var b strings.Builder
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" font-family="sans-serif" `+
		`font-size="12">`+"\n", width, (height+gap)*len(levels)+gap)
	b.WriteString(`<rect width="100%" height="100%" fill="white"/>` + "\n")
	bottom := 0
	for i, name := range levels {
		top := 1.0
		for _, each := range samples {
			top = max(top, each.values[i])
		}
		bottom = (height + gap) * (i + 1)
		fmt.Fprintf(&b, `<text x="%d" y="%d">%s</text><text x="%d" y="%d" text-anchor="end">at most %.0f</text>`+"\n",
			left, bottom-height-8, name, width-right, bottom-height-8, top)
		fmt.Fprintf(&b, `<path d="M%d %dH%d" stroke="#888"/><path fill="none" stroke="#1f77b4" stroke-width="1.5" d="`,
			left, bottom, width-right)
		for n, each := range samples {
			command := "L"
			if n == 0 {
				command = "M"
			}
			fmt.Fprintf(&b, "%s%.1f %.1f", command, x(each.at.Minutes()), float64(bottom)-each.values[i]/top*height)
		}
		b.WriteString(`"/>` + "\n")
	}
	for minute := 0.0; minute <= end; minute += max(1, float64(int(end/6))) {
		fmt.Fprintf(&b, `<text x="%.0f" y="%d" text-anchor="middle">%.0f min</text>`, x(minute), bottom+18, minute)
	}
	b.WriteString("\n</svg>\n")
	return b.String()
}
