package postgres_test

import (
	"errors"
	"testing"
	"time"

	"github.com/sluice-fhir/sluice/pkg/source"
	"github.com/sluice-fhir/sluice/pkg/source/postgres"
	"github.com/sluice-fhir/sluice/pkg/source/sourcetest"
)

func TestMentions(t *testing.T) {
	t.Parallel()
	sourcetest.Mentions(t, 4, func(t *testing.T) (source.Source, func(lines ...string)) {
		s := newStore(t)
		return s.src, func(lines ...string) {
			s.loadWith(ndjson(lines...), postgres.LoadConfig{Parallel: 2, History: time.Hour})
		}
	})
}

// mentions returns who mentions the resource as of an instant: of the patients, or of the referenced resources.
func (s *store) mentions(at time.Time, ref string, patients ...string) (by []string, err error) {
	err = s.src.Mentions(s.t.Context(), source.MentionsQuery{Refs: []string{ref}, Patients: patients, AsOf: at},
		func(found, _ string) error { by = append(by, found); return nil })
	return by, err
}

// TestMentionsOfOtherReleases: what a load of a release without mentions has added is unknown as of later instants, until
// the next load of this release. It reads the bodies of rows that were loaded under other rules.
func TestMentionsOfOtherReleases(t *testing.T) {
	t.Parallel()
	for _, rules := range []int{source.Rules, source.Rules - 1} {
		s := newStore(t)
		known := func(at time.Time, want int) {
			t.Helper()
			by, err := s.mentions(at, "Practitioner/d", "a", "b")
			if err != nil || len(by) != want {
				t.Errorf("rules %d: %v, %v; want %d", rules, by, err, want)
			}
		}
		performer := `"performer":[{"reference":"Practitioner/d"}]`
		s.loadWith(ndjson(observation("1", "a", 1, performer)), keeping())
		first := s.snapshot()
		known(first, 1)
		s.loadWith(ndjson(observation("2", "b", 1, performer)), keeping())
		second := s.snapshot()
		s.exec("DELETE FROM mention WHERE by = 'b'")
		s.exec("UPDATE load_batch SET mentions = NULL WHERE no = 2")
		s.exec("UPDATE resource SET head = set_byte(head, 8, $1) WHERE born = 2", rules)
		known(first, 1)
		if by, err := s.mentions(second, "Practitioner/d", "a", "b"); !errors.Is(err, source.ErrMentionsUnknown) {
			t.Errorf("unknown mentions: %v, %v", by, err)
		}
		s.loadWith(ndjson(observation("3", "c", 1)), keeping())
		known(second, 2)
		known(s.snapshot(), 2)
		s.exec("UPDATE load_batch SET mentions = $1 WHERE no = 1", source.Rules+1)
		if by, err := s.mentions(second, "Practitioner/d", "a", "b"); !errors.Is(err, source.ErrMentionsUnknown) {
			t.Errorf("mentions under other rules: %v, %v", by, err)
		}
	}
}
