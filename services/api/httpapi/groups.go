package httpapi

import (
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"github.com/gin-gonic/gin"
	"github.com/sluice-fhir/sluice/pkg/audit"
	"github.com/sluice-fhir/sluice/pkg/directory"
	"github.com/sluice-fhir/sluice/pkg/export"
	"github.com/sluice-fhir/sluice/pkg/fhir"
)

// groupResource is a Group without its members: there may be millions, and the caller's grant may exclude some (L-07).
type groupResource struct {
	ResourceType string                 `json:"resourceType"`
	ID           string                 `json:"id"`
	Identifier   []directory.Identifier `json:"identifier,omitempty"`
	Active       bool                   `json:"active"`
	Type         string                 `json:"type"`
	Actual       bool                   `json:"actual"`
	Name         string                 `json:"name,omitempty"`
	Quantity     *int64                 `json:"quantity,omitempty"`
}

// readGroup answers with a Group that the caller may export (L-07).
func (s *service) readGroup(c *gin.Context) error {
	if _, err := groupQuery(c); err != nil {
		return err
	}
	grant, err := s.groupGrant(c)
	if err != nil {
		return err
	}
	// The same refusal for an unknown group and for one outside the grant hides whether it exists.
	noGroup := refused(http.StatusNotFound, "not-found", "There is no such Group, or this token may not read it.")
	id := c.Param("group")
	if !fhir.IsID(id) || !grant.Groups.Has(id) {
		return noGroup
	}
	ctx := c.Request.Context()
	if err := s.Groups.Exists(ctx, id); errors.Is(err, directory.ErrNoGroup) {
		return noGroup
	} else if err != nil {
		return fmt.Errorf("looking up the group: %w", err)
	}
	var found *groupResource
	err = s.Groups.Find(ctx, []string{id}, "", func(details directory.Details) error {
		resource := resourceOf(details, grant)
		found = &resource
		return nil
	})
	switch {
	case err != nil:
		return fmt.Errorf("reading the group: %w", err)
	case found == nil: // deleted meanwhile
		return noGroup
	}
	event := succeeded(audit.Read, "", http.StatusOK)
	event.Target = "Group/" + id
	if err := s.recordEvent(c, event); err != nil {
		return err
	}
	writeBody(c, http.StatusOK, fhirJSON, encode(found))
	return nil
}

// bundle is the answer to a search.
type bundle struct {
	ResourceType string  `json:"resourceType"`
	Type         string  `json:"type"`
	Total        *int    `json:"total,omitempty"`
	Link         []link  `json:"link"`
	Entry        []entry `json:"entry,omitempty"`
}

type link struct {
	Relation string `json:"relation"`
	URL      string `json:"url"`
}

type entry struct {
	FullURL  string        `json:"fullUrl"`
	Resource groupResource `json:"resource"`
	Search   struct {
		Mode string `json:"mode"`
	} `json:"search"`
}

// errFull ends a search whose page is full.
var errFull = errors.New("the page is full")

// searchGroups answers with a page of the groups that the caller may export and that match (L-07), ascending by id. The
// total is given only if all of them are on the page.
func (s *service) searchGroups(c *gin.Context) error {
	query, err := groupQuery(c)
	if err != nil {
		return err
	}
	search, err := parseGroupSearch(query)
	if err != nil {
		return err
	}
	grant, err := s.groupGrant(c)
	if err != nil {
		return err
	}
	page := bundle{
		ResourceType: "Bundle", Type: "searchset", Link: []link{{"self", s.searchURL(query)}}, Entry: []entry{},
	}
	err = s.Groups.Find(c.Request.Context(), search.ids, search.after, func(details directory.Details) error {
		if !grant.Groups.Has(details.ID) || !search.matches(details) {
			return nil
		}
		if len(page.Entry) == search.count {
			return errFull
		}
		one := entry{FullURL: s.baseText + "/Group/" + details.ID, Resource: resourceOf(details, grant)}
		one.Search.Mode = "match"
		page.Entry = append(page.Entry, one)
		return nil
	})
	switch {
	case errors.Is(err, errFull):
		query.Set(afterParameter, page.Entry[search.count-1].Resource.ID)
		page.Link = append(page.Link, link{"next", s.searchURL(query)})
	case err != nil:
		return fmt.Errorf("searching the groups: %w", err)
	case search.after == "":
		total := len(page.Entry)
		page.Total = &total
	}
	if err := s.recordEvent(c, succeeded(audit.Search, "", http.StatusOK)); err != nil {
		return err
	}
	writeBody(c, http.StatusOK, fhirJSON, encode(page))
	return nil
}

func (s *service) searchURL(query url.Values) string {
	if len(query) == 0 {
		return s.baseText + "/Group"
	}
	return s.baseText + "/Group?" + query.Encode()
}

// groupQuery returns the query of a read or search, after the checks that need no store.
func groupQuery(c *gin.Context) (url.Values, error) {
	if !accepts(c.Request.Header, fhirJSON, plainJSON) {
		return nil, notAcceptable(noJSON)
	}
	query, err := url.ParseQuery(c.Request.URL.RawQuery)
	if err != nil {
		return nil, invalid("The query string cannot be read: a percent-encoding is wrong or a ';' is not encoded.")
	}
	return query, nil
}

// groupGrant returns the caller's grant, without groups if it does not allow their export. A token without a scope that
// reads Group is refused.
func (s *service) groupGrant(c *gin.Context) (directory.Grant, error) {
	who := principalOf(c)
	if !who.Scopes.MayRead("Group") {
		return directory.Grant{}, forbidden("The token has no scope that reads Group.")
	}
	if err := s.limit(c, "group", "reads and searches of groups", s.StatusLimit); err != nil {
		return directory.Grant{}, err
	}
	grant, err := s.Access.Grant(c.Request.Context(), who.Owner)
	if err != nil {
		return directory.Grant{}, fmt.Errorf("reading the grant of owner %s: %w", who.Owner.Hash(), err)
	}
	if !grant.Levels.Has(export.GroupLevel) {
		return directory.Grant{}, nil
	}
	return grant, nil
}

// resourceOf returns the Group. Its quantity counts patients, so only a caller who may export every patient sees it.
func resourceOf(details directory.Details, grant directory.Grant) groupResource {
	group := groupResource{
		ResourceType: "Group", ID: details.ID, Identifier: details.Identifiers, Active: true, Type: "person", Actual: true,
		Name: details.Name,
	}
	if grant.Few != nil && grant.Few.IsEverything() {
		group.Quantity = details.Quantity
	}
	return group
}

// afterParameter is the parameter of the link to the next page.
const afterParameter = "after"

// maxPage is the largest page of a search.
const maxPage = 100

// groupSearch is a search for groups. Of the lists each has to match, and of a list one value.
type groupSearch struct {
	ids         []string // nil: all
	identifiers [][]func(directory.Identifier) bool
	names       [][]string // in lower case
	count       int
	after       string // an id
}

// parseGroupSearch reads the parameters of a search. Unknown ones are refused: ignoring them would find more than was
// asked for.
func parseGroupSearch(query url.Values) (groupSearch, error) {
	search := groupSearch{count: maxPage}
	for _, name := range slices.Sorted(maps.Keys(query)) {
		for _, value := range query[name] {
			if err := search.take(name, value); err != nil {
				return groupSearch{}, err
			}
		}
	}
	return search, nil
}

func (q *groupSearch) take(name, value string) error {
	alternatives := splitEscaped(value, ',')
	switch name {
	case "_id", "identifier", "name":
		if slices.Contains(alternatives, "") {
			return invalid("The parameter " + name + " has an empty value, or a comma too many.")
		}
	}
	switch name {
	case "_format", "_pretty": // JSON is the only format (K-18)
	case "_id":
		if q.ids == nil {
			q.ids = alternatives
		} else {
			q.ids = slices.DeleteFunc(q.ids, func(id string) bool { return !slices.Contains(alternatives, id) })
		}
		// Nothing else can be the id of a group.
		q.ids = slices.DeleteFunc(q.ids, func(id string) bool { return !fhir.IsID(id) })
	case "identifier":
		var tokens []func(directory.Identifier) bool
		for _, text := range alternatives {
			if text == "|" {
				return invalid("The parameter identifier has an empty value.")
			}
			tokens = append(tokens, identifierToken(text))
		}
		q.identifiers = append(q.identifiers, tokens)
	case "name":
		for i, text := range alternatives {
			alternatives[i] = strings.ToLower(unescape(text))
		}
		q.names = append(q.names, alternatives)
	case "_count":
		n, err := strconv.Atoi(value)
		if err != nil || n < 1 {
			return invalid("The parameter _count must be a positive whole number.")
		}
		q.count = min(n, maxPage)
	case afterParameter:
		if !fhir.IsID(value) {
			return invalid("The parameter " + afterParameter + " is not that of a link to a next page.")
		}
		q.after = value
	default:
		if !parameterForm.MatchString(name) {
			return invalid("The query string has an unknown parameter.")
		}
		return invalid("The parameter " + name + " is not supported in a search for groups. Supported are _id, identifier, " +
			"name and _count, without modifiers.")
	}
	return nil
}

// matches reports whether the group matches, apart from its id.
func (q *groupSearch) matches(details directory.Details) bool {
	name := strings.ToLower(details.Name)
	for _, starts := range q.names {
		if !slices.ContainsFunc(starts, func(start string) bool { return name != "" && strings.HasPrefix(name, start) }) {
			return false
		}
	}
	for _, tokens := range q.identifiers {
		if !slices.ContainsFunc(tokens, func(is func(directory.Identifier) bool) bool {
			return slices.ContainsFunc(details.Identifiers, is)
		}) {
			return false
		}
	}
	return true
}

// identifierToken returns the condition of a token: value, system|value, |value (without a system) or system| (R4
// 3.1.1.4.10).
func identifierToken(text string) func(directory.Identifier) bool {
	parts := splitEscaped(text, '|')
	system, value := unescape(parts[0]), unescape(strings.Join(parts[1:], "|"))
	if len(parts) == 1 {
		return func(i directory.Identifier) bool { return i.Value == system }
	}
	return func(i directory.Identifier) bool { return i.System == system && (value == "" || i.Value == value) }
}

// splitEscaped splits at the separator, unless a backslash precedes it. The parts are still escaped.
func splitEscaped(text string, separator byte) (parts []string) {
	begin := 0
	for i := 0; i < len(text); i++ {
		switch text[i] {
		case '\\':
			i++
		case separator:
			parts, begin = append(parts, text[begin:i]), i+1
		}
	}
	return append(parts, text[begin:])
}

// unescape removes the backslashes before characters that have a meaning (R4 3.1.1.4.16).
func unescape(text string) string {
	return strings.NewReplacer(`\\`, `\`, `\,`, `,`, `\|`, `|`, `\$`, `$`).Replace(text)
}
