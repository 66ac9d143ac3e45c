package export

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/sluice-fhir/sluice/pkg/fhir"
)

// Numbers says what became of the resources of one type (M-14). Expected is the sum of Written, Filtered, Withheld and
// LeftOut.
type Numbers struct {
	Type     string `json:"type"`
	Expected *int64 `json:"expected"` // nil: a unit failed, or LeftOut is nil
	Written  int64  `json:"written"`  // lines of the files
	Filtered int64  `json:"filtered"` // not asked for
	Withheld int64  `json:"withheld"` // also about somebody who is not a patient of the export
	LeftOut  *int64 `json:"leftOut"`  // not readable, of a patient who is not known, or missing; nil: not for the owner
	Failed   int64  `json:"failed"`   // units that failed; what they would have written is in no other number
}

// Check returns an error unless everything that the source returned for the unit was written, filtered or withheld: a
// stage may not lose a line.
func (r Result) Check() error {
	total := int64(0)
	for _, t := range r.Types {
		if t.Found != t.Written+t.Filtered+t.Withheld {
			return fmt.Errorf("the numbers of %s do not add up: %+v", t.Type, t)
		}
		total += t.Found
	}
	if r.Types != nil && total != r.Found {
		return fmt.Errorf("the numbers of the types have %d resources, those of the unit %d", total, r.Found)
	}
	if ended := r.ended(); r.Found != ended {
		return fmt.Errorf("the source returned %d resources, of which %d were written, filtered or withheld", r.Found, ended)
	}
	return nil
}

// ended returns the number of resources that were written, filtered or withheld.
func (r Result) ended() int64 {
	n := r.Filtered + r.Withheld - r.Headers
	for _, file := range r.Files {
		if !file.Error && !file.Deleted {
			n += file.Count
		}
	}
	return n
}

// Balance adds up the numbers of a job. The zero Balance is ready to use. It is not safe for concurrent use.
type Balance struct{ types map[string]*tally }

type tally struct {
	Numbers
	found, left int64
	hidden      bool // a part of left is not for the owner
}

func (b *Balance) of(typ string) *tally {
	if b.types == nil {
		b.types = map[string]*tally{}
	}
	if b.types[typ] == nil {
		b.types[typ] = &tally{Numbers: Numbers{Type: typ}}
	}
	return b.types[typ]
}

// Add adds a closed unit of a job.
func (b *Balance) Add(request Request, unit Unit, result Result) {
	switch {
	case unit.Kind == KindPlan:
		for _, l := range result.LeftOut {
			// Others are no resources of this export, or there by design.
			told := l.Warning() && l.Reason != UnreadableFile || l.Reason == NotGranted
			if l.Type != "" && told {
				b.leave(l.Type, l.Count)
			}
		}
	case unit.Kind == KindResolveReferences && result.Failure != "":
		for _, typ := range request.Types {
			if fhir.IsReferenced(typ) {
				b.of(typ).Failed++
			}
		}
	case unit.Scope == ScopeLeading || unit.Scope == ScopeFollowed && !unit.Organized():
		for _, typ := range request.Types { // its own resources are counted elsewhere, or not exported
			if result.Failure != "" && fhir.IsReferenced(typ) {
				b.of(typ).Failed++
			}
		}
	case unit.Organized() && result.Failure != "":
		for typ := range strings.SplitSeq(unit.Types, ",") {
			if slices.Contains(request.Types, typ) {
				b.of(typ).Failed++
			}
		}
	case unit.Organized():
		for _, n := range result.Types {
			t := b.of(n.Type)
			t.found += n.Found
			t.Written += n.Written
			t.Filtered += n.Filtered
			t.Withheld += n.Withheld
		}
	case unit.Type == "":
	case result.Failure != "":
		b.of(unit.Type).Failed++
	default:
		t, ended := b.of(unit.Type), result.ended()
		t.found += max(result.Found, ended) // a worker of the previous release does not count
		t.Filtered += result.Filtered
		t.Withheld += result.Withheld
		t.Written += ended - result.Filtered - result.Withheld
		for _, l := range result.LeftOut {
			if l.Type != "" && l.Count == 0 {
				b.leave(l.Type, 0)
			}
		}
	}
}

// leave adds resources that are left out; 0: some, and the number is not for the owner.
func (b *Balance) leave(typ string, count int64) {
	t := b.of(typ)
	t.left += count
	t.hidden = t.hidden || count == 0
}

// List returns the numbers of the types that have any, by type. left is what all units left out (Shortfall.LeftOutOf), of
// which members of the cohort without a Patient resource count as such.
func (b *Balance) List(left []LeftOut) []Numbers {
	for _, l := range left {
		if l.Reason == MemberMissing {
			b.leave("Patient", l.Count)
		}
	}
	list := []Numbers{}
	for t := range maps.Values(b.types) {
		n := t.Numbers
		if !t.hidden {
			n.LeftOut = &t.left
		}
		if expected := t.found + t.left; !t.hidden && t.Failed == 0 {
			n.Expected = &expected
		}
		list = append(list, n)
	}
	slices.SortFunc(list, func(a, b Numbers) int { return cmp.Compare(a.Type, b.Type) })
	return list
}
