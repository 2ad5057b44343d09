"""Importers: models of other frameworks to Relax modules with whole recurrent layers."""
