package directory

import (
	"errors"
	"io"
	"slices"

	"github.com/sluice-fhir/sluice/pkg/fhir"
)

// PatientFilter reports which patients a grant includes: the listed ones, or all but the listed ones. It reads the list
// as a stream and holds one id of it. It is not safe for concurrent use.
type PatientFilter struct {
	allBut bool
	next   func() (string, error)
	listed string // the last id of the list that was read
	asked  string
	err    error // io.EOF after the end of the list
}

var (
	errList  = errors.New("the list of patients has a malformed id, or is not in ascending order")
	errAsked = errors.New("patients are not asked in ascending order")
)

// NewPatientFilter returns the filter of a list of ids. next returns them in ascending order, each once, and then io.EOF.
func NewPatientFilter(allBut bool, next func() (string, error)) *PatientFilter {
	return &PatientFilter{allBut: allBut, next: next}
}

// Filter returns the filter of the list, whose names must be sorted.
func (l NameList) Filter() *PatientFilter {
	rest := l.Names
	return NewPatientFilter(l.All, func() (id string, err error) {
		if len(rest) == 0 {
			return "", io.EOF
		}
		id, rest = rest[0], rest[1:]
		return id, nil
	})
}

// Includes reports whether the grant includes the patient. Ask for ids in ascending order.
func (f *PatientFilter) Includes(id string) (bool, error) {
	if id < f.asked {
		return false, errAsked
	}
	for f.asked = id; f.listed < id; {
		if err := f.advance(); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			return false, err
		}
	}
	return id != "" && (f.listed == id) != f.allBut, nil
}

// Everybody reports whether the grant includes every patient. Ask before Includes.
func (f *PatientFilter) Everybody() (bool, error) {
	if f.listed == "" {
		if err := f.advance(); err != nil && !errors.Is(err, io.EOF) {
			return false, err
		}
	}
	return f.allBut && f.listed == "", nil
}

// Finish reads the list to its end and returns an error if it is invalid.
func (f *PatientFilter) Finish() error {
	for {
		if err := f.advance(); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
	}
}

// advance reads the next id of the list. Its first error is final.
func (f *PatientFilter) advance() error {
	if f.err != nil {
		return f.err
	}
	id, err := f.next()
	if err == nil && (!fhir.IsID(id) || id <= f.listed) {
		err = errList
	}
	if f.err = err; err == nil {
		f.listed = id
	}
	return err
}

// Sorted returns the list with its names in ascending order, each once.
func (l NameList) Sorted() NameList {
	return NameList{All: l.All, Names: slices.Compact(slices.Sorted(slices.Values(l.Names)))}
}
