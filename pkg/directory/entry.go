package directory

import (
	"fmt"
	"strings"
	"unicode/utf8"

	"github.com/sluice-fhir/sluice/pkg/export"
	"github.com/sluice-fhir/sluice/pkg/fhir"
)

// GrantEntry is one owner's grant, spelled out.
type GrantEntry struct {
	Owner    export.Owner
	Types    NameList // resource types
	Groups   NameList // group ids
	Patients NameList // patient ids
}

// NameList is the names, or with All everything but the names. The zero NameList selects nothing.
type NameList struct {
	All   bool
	Names []string
}

// Selection is what the list selects.
func (l NameList) Selection() Selection {
	if l.All {
		return AllBut(l.Names...)
	}
	return Only(l.Names...)
}

// Grant is what the entry allows.
func (e GrantEntry) Grant() Grant {
	return Grant{
		Types: e.Types.Selection(), Groups: e.Groups.Selection(), Patients: e.Patients.Selection(),
	}
}

const (
	aType = "a resource type of R4"
	anID  = "a FHIR id"
)

// Validate names the first thing in the entry that no entry can hold.
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

// IsStorable reports whether there can be an entry for an issuer or subject of this name.
func IsStorable(name string) bool {
	return name != "" && utf8.ValidString(name) && !strings.Contains(name, "\x00")
}
