"""Widgets of other makers: nothing to switch on without a front end."""


def enable_custom_widget_manager(): ...


def disable_custom_widget_manager(): ...
