package pipeline_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/sluice-fhir/sluice/pkg/export"
	"github.com/sluice-fhir/sluice/pkg/fhir"
	"github.com/sluice-fhir/sluice/pkg/source"
)

// memory is a source of hand-written resources. It refuses calls that the contract forbids.
type memory struct {
	resources []source.Resource
	patients  int64 // the reported number; 0: the real one
	leftOut   []export.LeftOut
}

// holding returns a source of the resources, each one line of JSON.
func holding(t testing.TB, lines ...string) *memory {
	t.Helper()
	var scanner fhir.Scanner
	m := &memory{}
	targets := map[string][]fhir.Ref{}
	subjects := map[fhir.Ref][]string{}
	for _, line := range lines {
		facts, err := scanner.Scan([]byte(line))
		if err != nil {
			t.Fatalf("%s: %v", line, err)
		}
		r := source.Resource{Type: facts.Type, ID: facts.ID, Body: []byte(line)}
		r.Subjects = append(r.Subjects, source.Named(nil, facts)...)
		if r.Type == "Provenance" {
			targets[r.ID] = slices.Clone(facts.Subjects)
		}
		subjects[fhir.Ref{Type: r.Type, ID: r.ID}] = r.Subjects
		m.resources = append(m.resources, r)
	}
	for i, r := range m.resources {
		for _, target := range targets[r.ID] {
			r.Subjects = append(r.Subjects, subjects[target]...)
		}
		slices.Sort(r.Subjects)
		m.resources[i].Subjects = slices.Compact(r.Subjects)
	}
	return m
}

func (m *memory) Sizes(context.Context) (source.Sizes, error) {
	sizes := source.Sizes{Patients: m.patients, Types: map[string]source.TypeSize{}}
	for _, r := range m.resources {
		size := sizes.Types[r.Type]
		size.Resources++
		size.Bytes += int64(len(r.Body)) + 1
		sizes.Types[r.Type] = size
	}
	if m.patients == 0 {
		sizes.Patients = sizes.Types["Patient"].Resources
	}
	return sizes, nil
}

func (m *memory) ForPatients(_ context.Context, q source.Query, yield func(source.Resource) error) error {
	if len(q.Patients) == 0 || !slices.IsSorted(q.Patients) || q.AsOf.IsZero() || !fhir.InCompartment(q.Type) {
		return fmt.Errorf("a query that the contract forbids for %s", q.Type)
	}
	return m.each(q.Type, func(r source.Resource) bool {
		return slices.ContainsFunc(r.Subjects, func(subject string) bool {
			_, asked := slices.BinarySearch(q.Patients, subject)
			return asked
		})
	}, yield)
}

func (m *memory) ByID(_ context.Context, q source.ByIDQuery, yield func(source.Resource) error) error {
	if len(q.IDs) == 0 || !slices.IsSorted(q.IDs) || q.AsOf.IsZero() || !source.HasByID(q.Type) {
		return fmt.Errorf("a query that the contract forbids for %s", q.Type)
	}
	return m.each(q.Type, func(r source.Resource) bool {
		_, asked := slices.BinarySearch(q.IDs, r.ID)
		return asked
	}, yield)
}

func (m *memory) About(_ context.Context, q source.AboutQuery, yield func(source.Resource) error) error {
	if q.AsOf.IsZero() {
		return errors.New("a query that the contract forbids for Provenance")
	}
	var scanner fhir.Scanner
	return m.each("Provenance", func(r source.Resource) bool {
		facts, err := scanner.Scan(r.Body)
		return err == nil && len(r.Subjects) == 0 && slices.ContainsFunc(facts.Subjects, func(ref fhir.Ref) bool {
			return slices.Contains(q.Refs, source.Ref(ref))
		})
	}, yield)
}

func (m *memory) Patients(_ context.Context, asOf time.Time, yield func(string) error) error {
	if asOf.IsZero() {
		return errors.New("a query that the contract forbids for patients")
	}
	var ids []string
	for _, r := range m.resources {
		if r.Type == "Patient" {
			ids = append(ids, r.ID)
		}
	}
	slices.Sort(ids)
	for _, id := range ids {
		if err := yield(id); err != nil {
			return err
		}
	}
	return nil
}

func (m *memory) NewPatients(context.Context, time.Time, time.Time, func(string) error) error {
	return nil
}

func (m *memory) Deleted(context.Context, source.DeletedQuery, func(source.Deletion) error) error {
	return nil
}

func (m *memory) Mentions(context.Context, source.MentionsQuery, func(by, ref string) error) error {
	return source.ErrMentionsUnknown
}

func (m *memory) Everything(_ context.Context, q source.EverythingQuery, yield func(source.Resource) error) error {
	if q.AsOf.IsZero() || !fhir.IsStored(q.Type) {
		return fmt.Errorf("a query that the contract forbids for %s", q.Type)
	}
	return m.each(q.Type, func(r source.Resource) bool {
		first := ""
		if len(r.Subjects) > 0 && fhir.InCompartment(r.Type) && r.Subjects[0] < source.Somebody {
			first = r.Subjects[0]
		}
		return q.From <= first && (q.To == "" || first < q.To)
	}, yield)
}

func (m *memory) Snapshot(_ context.Context, now time.Time) (time.Time, error) {
	return now.UTC().Truncate(time.Second), nil
}

func (m *memory) LeftOut(context.Context) ([]export.LeftOut, error) { return m.leftOut, nil }

func (m *memory) each(typ string, wanted func(source.Resource) bool, yield func(source.Resource) error) error {
	for _, r := range m.resources {
		if r.Type != typ || !wanted(r) {
			continue
		}
		r.Body = slices.Clone(r.Body)
		if err := yield(r); err != nil {
			return err
		}
		clear(r.Body) // the caller may use it only until yield returns
	}
	return nil
}

// hooked calls functions around every query of a type, and may add to its results.
type hooked struct {
	source.Source
	typ string
	// before, if set, is called with the number of the query, from 1. The query returns its error.
	before func(ctx context.Context, call int) error
	// within, if set, is called after the first resource.
	within func(ctx context.Context, call int) error
	// extra is returned after the stored resources.
	extra []source.Resource
	calls int
}

func (h *hooked) ForPatients(ctx context.Context, q source.Query, yield func(source.Resource) error) error {
	return h.query(ctx, q.Type, yield, func(yield func(source.Resource) error) error {
		return h.Source.ForPatients(ctx, q, yield)
	})
}

func (h *hooked) ByID(ctx context.Context, q source.ByIDQuery, yield func(source.Resource) error) error {
	return h.query(ctx, q.Type, yield, func(yield func(source.Resource) error) error {
		return h.Source.ByID(ctx, q, yield)
	})
}

func (h *hooked) query(
	ctx context.Context, typ string, yield func(source.Resource) error,
	give func(func(source.Resource) error) error,
) error {
	if typ != h.typ && h.typ != "" {
		return give(yield)
	}
	h.calls++
	call := h.calls
	if h.before != nil {
		if err := h.before(ctx, call); err != nil {
			return err
		}
	}
	first := true
	err := give(func(r source.Resource) error {
		if err := yield(r); err != nil {
			return err
		}
		if !first || h.within == nil {
			return nil
		}
		first = false
		return h.within(ctx, call)
	})
	if err != nil {
		return err
	}
	for _, r := range h.extra {
		if err := yield(r); err != nil {
			return err
		}
	}
	return nil
}

// errSource is the error of a failing source.
var errSource = errors.New("the clinical database is restarting")

// failing fails the first n queries of a type, after their first resource.
func failing(s source.Source, typ string, n int) *hooked {
	return &hooked{Source: s, typ: typ, within: func(_ context.Context, call int) error {
		if call <= n {
			return errSource
		}
		return nil
	}}
}

// aboutLeak returns one resource too many from About.
type aboutLeak struct {
	source.Source
	extra source.Resource
}

func (l *aboutLeak) About(ctx context.Context, q source.AboutQuery, yield func(source.Resource) error) error {
	if err := l.Source.About(ctx, q, yield); err != nil {
		return err
	}
	return yield(l.extra)
}
