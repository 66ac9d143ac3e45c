package directory

import (
	"fmt"
	"strings"
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

const (
	aType = "a resource type of R4"
	anID  = "a FHIR id"
)

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
		what  string
		holds func(string) bool
	}{
		{"types", e.Types.Names, aType, fhir.IsType},
		{"groups", e.Groups.Names, anID, fhir.IsID[string]},
		{"patients", e.Patients.Names, anID, fhir.IsID[string]},
	} {
		for i, name := range list.names {
			if !list.holds(name) {
				return fmt.Errorf("number %d of %s is not %s", i+1, list.key, list.what)
			}
		}
	}
	return nil
}

// IsStorable reports whether an entry can have this name as issuer or subject.
func IsStorable(name string) bool {
	return name != "" && utf8.ValidString(name) && !strings.Contains(name, "\x00")
}
