package httpapi

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"

	"github.com/sluice-fhir/sluice/pkg/directory"
	"github.com/sluice-fhir/sluice/pkg/export"
	"github.com/sluice-fhir/sluice/pkg/fhir"
	"github.com/sluice-fhir/sluice/pkg/token"
)

// The parameter `patient` limits an export, so it is never ignored as a whole, also when lenient: the export would be of
// patients that nobody asked for. Its text is never repeated, and its values are in no URL, log or record.

// takePatients reads the references of `patient` (P-22, P-24, P-25, P-42).
func takePatients(a asking, one given) ([]string, error) {
	switch {
	case !one.inBody: // URLs are stored and logged by others
		return nil, unsupported("The parameter patient is only supported in the body of a POST request.")
	case a.level == export.SystemLevel:
		return nil, unsupported("The parameter patient is not supported by an export of the system level.")
	case len(one.values) > maxPatients:
		return nil, refused(http.StatusBadRequest, "too-costly",
			fmt.Sprintf("The parameter patient has more than %d references.", maxPatients))
	}
	ids := make([]string, 0, len(one.values))
	for _, reference := range one.values {
		id, ok := a.patientOf(reference)
		if !ok {
			return nil, invalid("The parameter patient has a value that is not a reference to a Patient of this server, such as " +
				"Patient/[id].")
		}
		ids = append(ids, id)
	}
	slices.Sort(ids)
	return slices.Compact(ids), nil
}

// patientOf reads a relative reference to a Patient, or one below a base of this server, with or without a version.
func (s *service) patientOf(reference string) (id string, ok bool) {
	if strings.Contains(reference, "#") { // of a contained resource
		return "", false
	}
	typ, id, form := fhir.Classify(reference)
	if form == fhir.Foreign {
		literal, ok := s.bases.Literal(reference)
		return literal.ID, ok && literal.Type == "Patient"
	}
	return id, form == fhir.Local && typ == "Patient"
}

// knownPatients returns the asked patients that the owner can export, sorted: those that the server holds, that are members
// of the group at its level, and that the grant includes. The others are refused, or ignored when lenient, as one number:
// which they are and why would disclose who is held, and who is a member (P-23).
func (s *service) knownPatients(
	ctx context.Context, who token.Principal, group string, p *parameters, a asking,
) ([]string, error) {
	if p.patients == nil {
		return nil, nil
	}
	// The grant first: a look-up of others would show by its time whether they exist.
	var granted []string
	err := s.Access.Patients(ctx, who.Owner, func(_ directory.Grant, filter *directory.PatientFilter) error {
		for _, id := range p.patients {
			included, err := filter.Includes(id)
			if err != nil {
				return err
			}
			if included {
				granted = append(granted, id)
			}
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("reading the patients of the grant of owner %s: %w", who.Owner.Hash(), err)
	}
	var unknown []string
	if len(granted) > 0 {
		unknown, err = s.Groups.Unknown(ctx, group, granted)
	}
	if errors.Is(err, directory.ErrNoGroup) { // it was removed meanwhile
		return nil, noGroup()
	}
	if err != nil {
		return nil, fmt.Errorf("looking up the patients: %w", err)
	}
	known := slices.DeleteFunc(granted, func(id string) bool {
		_, missing := slices.BinarySearch(unknown, id)
		return missing
	})
	missing := len(p.patients) - len(known)
	if missing == 0 {
		return known, nil
	}
	fault := refused(http.StatusBadRequest, "not-found",
		fmt.Sprintf("The parameter patient has references to patients that do not exist, are not in the group or may not be "+
			"exported with this token. Their number: %d.", missing))
	if len(known) == 0 {
		return nil, fault
	}
	return known, p.ignore(a, fault)
}
