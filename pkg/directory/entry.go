package directory

import (
	"errors"
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/sluice-fhir/sluice/pkg/export"
	"github.com/sluice-fhir/sluice/pkg/fhir"
)

// GrantEntry is one owner's grant as an operator writes it (docs/access.md).
type GrantEntry struct {
	Owner    export.Owner
	Types    NameList // resource types
	Groups   NameList // group ids
	Patients NameList // patient ids
}

// NameList selects its names, or with All every name except them. The zero NameList selects nothing.
type NameList struct {
	All   bool
	Names []string
}

// Selection returns the set that the list selects.
func (l NameList) Selection() Selection {
	if l.All {
		return AllBut(l.Names...)
	}
	return Only(l.Names...)
}

// Grant returns the grant of the entry.
func (e GrantEntry) Grant() Grant {
	return Grant{Types: e.Types.Selection(), Groups: e.Groups.Selection()}
}

// CheckType returns an error unless the name is that of a resource type. The error quotes only what may be one.
func CheckType(name string) error {
	if fhir.IsType(name) {
		return nil
	}
	const most = 40 // letters
	notLetter := func(r rune) bool { return r > unicode.MaxASCII || !unicode.IsLetter(r) }
	if len(name) > most || strings.ContainsFunc(name, notLetter) {
		return errors.New("is not a resource type of R4")
	}
	for _, typ := range fhir.ExportableTypes() {
		if strings.EqualFold(name, typ) || strings.EqualFold(name, typ+"s") {
			return fmt.Errorf("is not a resource type of R4: %q (did you mean %s?)", name, typ)
		}
	}
	return fmt.Errorf("is not a resource type of R4: %q", name)
}

// CheckID returns an error unless the name has the form of an id. The error does not quote it: it may be that of a patient.
func CheckID(name string) error {
	if fhir.IsID(name) {
		return nil
	}
	return errors.New("is not a FHIR id")
}

// Validate returns an error for a name that is not valid in an entry.
func (e GrantEntry) Validate() error {
	for key, name := range map[string]string{"issuer": e.Owner.Issuer, "subject": e.Owner.Subject} {
		if !IsStorable(name) {
			return fmt.Errorf("the %s is empty or not valid text", key)
		}
	}
	for _, list := range []struct {
		key   string
		names []string
		check func(string) error
	}{
		{"types", e.Types.Names, CheckType}, {"groups", e.Groups.Names, CheckID}, {"patients", e.Patients.Names, CheckID},
	} {
		for i, name := range list.names {
			if err := list.check(name); err != nil {
				return fmt.Errorf("number %d of %s %w", i+1, list.key, err)
			}
		}
	}
	return nil
}

// IsStorable reports whether an entry can have this name as issuer or subject.
func IsStorable(name string) bool {
	return name != "" && utf8.ValidString(name) && !strings.Contains(name, "\x00")
}
